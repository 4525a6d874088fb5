"""Scales of quantised values: float32 numbers of eight significant bits, stored in two bytes.

A scale is the upper half of a float32 whose lower half is zero (the format known as bfloat16). With so short a scale
every product of a scale and a level is exact in float32: nothing is rounded in decoding, so nothing can differ between
machines, and quantising a decoded vector again gives the same bytes.

Scales are zero or lie in `MIN_SCALE..`: then no decoded value is subnormal, and no difference between a value and its
decoded neighbour is (it is a multiple of 2**-121), so a processor that flushes subnormals changes nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.errors import CodecError

SCALE_BYTES: Final = 2
MIN_SCALE: Final = np.float32(2.0**-90)
_MAX_BITS: Final = np.uint32(0x7F7F_0000)  # the largest finite float32 with a zero lower half
_UPPER_HALF: Final = np.uint32(0xFFFF_0000)


def rounded(x: Float32Array) -> Float32Array:
    """The nearest scale to each x >= 0, finite; of two the one whose last bit is zero; zero below `MIN_SCALE`."""
    bits = x.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = np.minimum((bits + np.uint32(0x7FFF) + even) & _UPPER_HALF, _MAX_BITS).view(np.float32)
    return np.where(nearest < MIN_SCALE, np.float32(0.0), nearest)


def to_bytes(scales: Float32Array) -> bytes:
    """Scales, float32[m] -> 2 m bytes, little-endian."""
    return (scales.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


def from_bytes(data: memoryview, largest: np.float32) -> Float32Array:
    """2 m bytes -> float32[m].

    Args:
        data: what `to_bytes` wrote.
        largest: the largest scale that keeps every decoded value finite.

    Raises:
        CodecError: a scale is negative, not finite, above `largest`, or neither zero nor at least `MIN_SCALE`.
    """
    bits = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
    scales = bits.view(np.float32)
    low, high = (
        MIN_SCALE.view(np.uint32),
        largest.view(np.uint32),
    )  # as integers, which order NaN and signs above all
    if ((bits != 0) & ((bits < low) | (bits > high))).any():
        reason = "malformed" if np.isfinite(scales).all() else "not-finite"
        raise CodecError("a scale is out of range", reason=reason)
    return scales
