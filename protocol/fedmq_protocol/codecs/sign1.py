"""Kept values as a sign each and one magnitude for all.

With m_1 >= m_2 >= ... the magnitudes, sending the first j with their mean a_j leaves sum(m^2) - j a_j^2. The encoder
takes the j for which j a_j^2 is largest. An element below half the magnitude is better not sent at all: it stays in
the residual.

Exactness: the magnitude q has eight significant bits, and q / 2 <= m < 2**16 q for each m sent. Up to 2 q, m - q is
exact by Sterbenz's lemma. Beyond, m - q is a multiple of ulp(m) or of 2**-7 of q's leading bit, whichever is finer,
and below 2**24 of that: a float32.

The body: the magnitude as a scale (`scale`); then a bit for each value, 1 for negative, the first in the highest bit,
zeros filling the last byte.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import scale
from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.signs import Symbols
from fedmq_protocol.errors import CodecError

_REACH: Final = np.float32(2.0**-15)  # the largest magnitude times this is the least that may be sent
_LARGEST: Final = np.uint32(0x7F7F_0000).view(np.float32)


def body_bytes(count: int) -> int:
    """Length of the body for `count` values, before compression."""
    return 0 if count == 0 else scale.SCALE_BYTES + -(-count // 8)


def quantise(x: Float32Array) -> tuple[NDArray[np.bool_], bytes, Float32Array]:
    """Code what is worth it.

    Args:
        x: float32[count], finite.

    Returns:
        Which elements are sent, bool[count]; the body for those; their float32 values as they will be decoded.
    """
    magnitude = _magnitude(np.abs(x))
    kept = np.abs(x) >= magnitude * np.float32(0.5) if magnitude > 0 else np.zeros(len(x), np.bool_)
    if not kept.any():
        return kept, b"", np.empty(0, np.float32)
    negative = x[kept] < 0
    body = scale.to_bytes(np.array([magnitude])) + np.packbits(negative).tobytes()
    return kept, body, _signed(negative, magnitude)


def dequantise(body: memoryview, count: int) -> Float32Array:
    """The body, of the right length -> float32[count].

    Raises:
        CodecError: the magnitude is out of range or zero, or the filling is not zero.
    """
    if count == 0:
        return np.empty(0, np.float32)
    (magnitude,) = scale.from_bytes(body[: scale.SCALE_BYTES], _LARGEST)
    bits = np.unpackbits(np.frombuffer(body[scale.SCALE_BYTES :], np.uint8))
    if magnitude == 0:
        raise CodecError("values of magnitude zero")
    if bits[count:].any():
        raise CodecError("the filling of the last byte is not zero")
    return _signed(bits[:count] == 1, magnitude)


def _apart(bits: bytes, count: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count) == 1, np.zeros(count, np.int64)


def _joined(negative: NDArray[np.bool_], _: NDArray[np.int64]) -> bytes:
    return np.packbits(negative).tobytes()


SYMBOLS: Final = Symbols(scale.SCALE_BYTES, 0, _apart, _joined)
"""The body in signs and levels."""


def _signed(negative: NDArray[np.bool_], magnitude: np.float32) -> Float32Array:
    return np.where(negative, -magnitude, magnitude).astype(np.float32, copy=False)


def _magnitude(magnitudes: Float32Array) -> np.float32:
    if len(magnitudes) == 0:
        return np.float32(0.0)
    sums = np.cumsum(np.sort(magnitudes)[::-1], dtype=np.float64)
    counts = np.arange(1, len(sums) + 1)
    best = int(np.argmax(sums / np.sqrt(counts)))  # j a_j^2 is the square of this
    least = magnitudes.max() * _REACH
    mean = np.float32(min(sums[best] / counts[best], magnitudes.max()))
    return np.float32(scale.rounded(np.array([max(mean, least)]))[0])
