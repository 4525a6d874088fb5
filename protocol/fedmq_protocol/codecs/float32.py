"""Values as they are: little-endian float32. For starts from a checkpoint, small models, and comparison."""

from __future__ import annotations

from typing import Final

import numpy as np

from fedmq_protocol.codecs.decoded import Float32Array, flushed
from fedmq_protocol.codecs.rounding import Stochastic
from fedmq_protocol.codecs.slices import Source
from fedmq_protocol.errors import CodecError

_NO_SCALES: Final = np.empty(0, np.float32)


class Float32:
    """Four bytes a value, and nothing before them."""

    def head_bytes(self, count: int) -> int:
        del count
        return 0

    def section_bytes(self, count: int) -> int:
        return 4 * count

    def measure(self, source: Source) -> Float32Array:
        del source
        return _NO_SCALES

    def write_head(self, scales: Float32Array) -> bytes:
        del scales
        return b""

    def read_head(self, head: memoryview) -> Float32Array:
        del head
        return _NO_SCALES

    def write(
        self, x: Float32Array, start: int, scales: Float32Array, rounding: Stochastic | None
    ) -> tuple[bytes, Float32Array]:
        """The section and what it decodes to: subnormals are not sent."""
        del start, scales, rounding
        sent = flushed(x)
        return sent.astype("<f4", copy=False).tobytes(), sent

    def read(self, section: memoryview, start: int, count: int, scales: Float32Array) -> Float32Array:
        """The section, of the right length -> float32[count].

        Raises:
            CodecError: a value is infinite or not a number.
        """
        del start, scales
        values = np.frombuffer(section, "<f4", count).astype(np.float32)
        if not np.isfinite(values).all():
            raise CodecError("a value is not finite", reason="not-finite")
        return flushed(values)


FLOAT32: Final = Float32()
