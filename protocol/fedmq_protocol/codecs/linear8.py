"""Kept values in eight bits, linear, with one scale: the most precise of the sparse value codes.

The scale is max|x| / 127 rounded to eight significant bits and a value's level is round-half-even(x / scale), as in
`blockwise`, whose argument for the exactness of x - decoded(x) holds here too. A value whose level is zero is not
sent.

The body: the scale; then the levels in two's complement, one to a byte, neither 0 nor -128.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import scale
from fedmq_protocol.codecs.blockwise import INT8
from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.rounding import Stochastic, to_levels
from fedmq_protocol.codecs.signs import Symbols
from fedmq_protocol.errors import CodecError


def body_bytes(count: int) -> int:
    """Length of the body for `count` values, before compression."""
    return 0 if count == 0 else scale.SCALE_BYTES + count


def quantise(
    x: Float32Array, rounding: Stochastic | None = None
) -> tuple[NDArray[np.bool_], bytes, Float32Array]:
    """Code what is worth it.

    Args:
        x: float32[count], finite.
        rounding: chance; None for the nearest level.

    Returns:
        Which elements are sent, bool[count]; the body for those; their float32 values as they will be decoded.
    """
    largest = np.abs(x).max(initial=np.float32(0.0), keepdims=True)
    scales = scale.rounded(largest / np.float32(INT8.largest_level))
    if scales[0] == 0:
        return np.zeros(len(x), np.bool_), b"", np.empty(0, np.float32)
    largest_level = INT8.largest_level
    levels = np.clip(to_levels(x / scales, 0, rounding), -largest_level, largest_level).astype(np.int8)
    kept = levels != 0
    return kept, scale.to_bytes(scales) + levels[kept].tobytes(), levels[kept] * scales


def dequantise(body: memoryview, count: int) -> Float32Array:
    """The body, of the right length -> float32[count].

    Raises:
        CodecError: the scale or a level is out of range or zero.
    """
    if count == 0:
        return np.empty(0, np.float32)
    scales = scale.from_bytes(body[: scale.SCALE_BYTES], INT8.largest_scale)
    levels = np.frombuffer(body[scale.SCALE_BYTES :], np.int8)
    if scales[0] == 0 or not levels.all() or levels.min() < -INT8.largest_level:
        raise CodecError("a scale or a level is out of range")
    return levels * scales


def _apart(levels: bytes, count: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    signed = np.frombuffer(levels, np.int8, count).astype(np.int64)
    return signed < 0, np.abs(signed)


def _joined(negative: NDArray[np.bool_], levels: NDArray[np.int64]) -> bytes:
    return np.where(negative, -levels, levels).astype(np.int8).tobytes()


SYMBOLS: Final = Symbols(scale.SCALE_BYTES, 7, _apart, _joined)
"""The body in signs and levels."""
