"""Kept values in four bits: a sign and the logarithm of the magnitude in three.

Level j = 0..7 stands for scale * 2**(-j step / 16), the power of two taken from a table of numbers of eight
significant bits, so that its product with the scale is exact. The encoder chooses step and scale for each upload: raw
updates have long tails and want wide levels; with error feedback most of what is kept lies just above the threshold
and wants narrow ones.

Exactness: a level q has at most 16 significant bits, and q / 2 <= m < 2**8 q for each magnitude m sent. (Below half
of the lowest level it is better not to send an element at all: it stays in the residual. The scale is at least 2**-7.8
of the largest magnitude.) Up to 2 q, m - q is exact by Sterbenz's lemma. Beyond, m - q is positive, below m, and a
multiple of ulp(m) or of 2**-15 of q's leading bit, whichever is finer: less than 2**24 times that, so a float32.

The body: the scale (`scale`), the step 1..16 in a byte, then a nibble a value, the earlier one in the upper half:
8 for negative + j; zero filling the last byte.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import nibbles, scale
from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.signs import Symbols
from fedmq_protocol.errors import CodecError

LEVELS: Final = 8
MAX_STEP: Final = 16

# 2**(-i / 16) for i = 0..15, rounded to eight significant bits: numerators over 256.
_ROOTS: Final = (256, 245, 235, 225, 215, 206, 197, 189, 181, 173, 166, 159, 152, 146, 140, 134)

POWERS: Final[Float32Array] = np.array(
    [_ROOTS[i % 16] / 256 * 0.5 ** (i // 16) for i in range((LEVELS - 1) * MAX_STEP + 1)], np.float32
)
"""float32[113]: entry i stands for 2**(-i / 16). Level j of a code with a given step is entry j * step."""

_HEAD_BYTES: Final = scale.SCALE_BYTES + 1
_LARGEST: Final = np.uint32(0x7F7F_0000).view(np.float32)
_OFFSETS: Final = (
    32  # scales tried for each step: a quarter of a level apart, from the largest magnitude down
)
_OTHER_BITS: Final = 64.0
"""What an element is taken to cost besides its value. Its index takes about 8 bits, and with 8 here the most is carried
a bit; with more, values get more precise and uploads longer: 3 % with 64, for half of the error."""


def body_bytes(count: int) -> int:
    """Length of the body for `count` values, before compression."""
    return 0 if count == 0 else _HEAD_BYTES + nibbles.packed_bytes(count)


def quantise(x: Float32Array) -> tuple[NDArray[np.bool_], bytes, Float32Array]:
    """Code what is worth it.

    Args:
        x: float32[count], finite.

    Returns:
        Which elements are sent, bool[count]; the body for those; their float32 values as they will be decoded.
    """
    magnitudes = np.abs(x)
    scales, steps = _candidates(magnitudes.max(initial=np.float32(0.0)))
    if len(scales) == 0:
        return np.zeros(len(x), np.bool_), b"", np.empty(0, np.float32)
    chosen = _best(magnitudes, _levels(scales, steps))
    levels = _levels(scales[chosen : chosen + 1], steps[chosen : chosen + 1])[0]
    kept = magnitudes >= levels[-1] * np.float32(0.5)
    nearest = LEVELS - 1 - np.searchsorted(_borders(levels[None])[0, 1:], magnitudes[kept], side="right")
    codes = (nearest + LEVELS * (x[kept] < 0)).astype(np.uint8)
    body = scale.to_bytes(scales[chosen : chosen + 1]) + bytes([int(steps[chosen])]) + nibbles.pack(codes)
    return kept, body, _signed(levels)[codes]


def dequantise(body: memoryview, count: int) -> Float32Array:
    """The body, of the right length -> float32[count].

    Raises:
        CodecError: the scale or the step is out of range, or the filling is not zero.
    """
    if count == 0:
        return np.empty(0, np.float32)
    scales = scale.from_bytes(body[: scale.SCALE_BYTES], _LARGEST)
    step = body[scale.SCALE_BYTES]
    if scales[0] == 0 or not 1 <= step <= MAX_STEP:
        raise CodecError("the scale or the step of the levels is out of range")
    codes = nibbles.unpack(body[_HEAD_BYTES:], count)
    return _signed(_levels(scales, np.array([step]))[0]).take(codes)


def _apart(nibble_bytes: bytes, count: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    codes = nibbles.unpack(memoryview(nibble_bytes), count)
    return codes >= LEVELS, (codes % LEVELS).astype(np.int64)


def _joined(negative: NDArray[np.bool_], levels: NDArray[np.int64]) -> bytes:
    return nibbles.pack((levels + LEVELS * negative).astype(np.uint8))


SYMBOLS: Final = Symbols(_HEAD_BYTES, 3, _apart, _joined)
"""The body in signs and levels."""


def _levels(scales: Float32Array, steps: NDArray[np.int64]) -> Float32Array:
    """float32[c] and int[c] -> float32[c, 8], falling. Exact products, all normal: `MIN_SCALE` sees to it."""
    levels: Float32Array = scales[:, None] * POWERS[steps[:, None] * np.arange(LEVELS)]
    return levels


def _signed(levels: Float32Array) -> Float32Array:
    """float32[8] -> float32[16], what each nibble stands for."""
    return np.concatenate([levels, -levels])


def _borders(levels: Float32Array) -> NDArray[np.float64]:
    """float32[c, 8] -> float64[c, 8], rising: below the first nothing is sent; the others part the levels."""
    rising = levels[:, ::-1].astype(np.float64)
    lower = np.concatenate([np.zeros((len(levels), 1)), rising[:, :-1]], axis=1)
    return (lower + rising) / 2


def _candidates(largest: np.float32) -> tuple[Float32Array, NDArray[np.int64]]:
    """Scales and steps worth trying; none if everything is too small to send."""
    steps = np.repeat(np.arange(1, MAX_STEP + 1), _OFFSETS)
    quarters = np.tile(np.arange(_OFFSETS), MAX_STEP)
    scales = scale.rounded((largest * np.exp2(-steps * quarters / 64)).astype(np.float32))
    usable = scales > 0
    return scales[usable], steps[usable]


def _best(magnitudes: Float32Array, levels: Float32Array) -> int:
    """Which row of float32[c, 8] carries most of the sum of squares a bit."""
    ordered = np.sort(magnitudes)
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    cuts = np.searchsorted(ordered, _borders(levels))
    cuts = np.concatenate([cuts, np.full((len(levels), 1), len(ordered))], axis=1)
    counts = np.diff(cuts, axis=1)
    q = levels[:, ::-1].astype(np.float64)
    carried = np.sum(2 * q * np.diff(sums[cuts], axis=1) - q * q * counts, axis=1)  # sum of m^2 - (m - q)^2
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy = -np.sum(shares * np.log2(np.where(shares > 0, shares, 1.0)), axis=1)
    cost = len(ordered) * _OTHER_BITS + counts.sum(axis=1) * (1.0 + entropy)
    return int(np.argmax(carried / cost))
