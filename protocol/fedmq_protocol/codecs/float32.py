"""Values as they are: little-endian float32. For starts from a checkpoint, small models, and comparison."""

from __future__ import annotations

import numpy as np

from fedmq_protocol.codecs.decoded import Float32Array, flushed
from fedmq_protocol.errors import CodecError


def body_bytes(count: int) -> int:
    """Length of the body for `count` values, before compression."""
    return 4 * count


def quantise(x: Float32Array) -> tuple[bytes, Float32Array]:
    """Finite float32[count] -> the body, and float32[count] as it will be decoded: subnormals are not sent."""
    sent = flushed(x)
    return sent.astype("<f4", copy=False).tobytes(), sent


def dequantise(body: memoryview, count: int) -> Float32Array:
    """The body, of the right length -> float32[count].

    Raises:
        CodecError: a value is infinite or not a number.
    """
    values = np.frombuffer(body, "<f4", count).astype(np.float32)
    if not np.isfinite(values).all():
        raise CodecError("a value is not finite", reason="not-finite")
    return flushed(values)
