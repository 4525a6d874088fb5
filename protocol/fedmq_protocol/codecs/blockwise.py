"""Dense linear quantisation in blocks of 64, each with its own scale: eight or four bits a value.

A block's scale is max|x| / L rounded to eight significant bits (`scale`), L = 127 or 7, and a value's level is
round-half-even(x / scale), in float32. The rounded scale is off by at most one part in 256, so the largest value gets
level L. Products of levels and scales are exact, whence

- decoding gives the same bits everywhere, and quantising what was decoded gives the same bytes again;
- x - decoded(x) is a float32, exactly. Where the level is 0 the difference is x. Where it is m > 0 (signs apart), x
  lies in ((m - 1/2) scale, (m + 1/2) scale), borders included for even m; so x and m scale are within a factor of two
  of each other, where float32 subtraction is exact (Sterbenz's lemma).

The body: scales, two bytes each, zero for a block without a value worth a level; then the levels in two's complement,
one to a byte, or two to a byte with the earlier one in the upper half and zero filling the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import nibbles, scale
from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.rounding import Stochastic, to_levels
from fedmq_protocol.codecs.slices import Source, parts
from fedmq_protocol.errors import CodecError

BLOCK: Final = 64
_Number = TypeVar("_Number", np.float32, np.int8)


@dataclass(frozen=True)
class Blockwise:
    """Blocks with levels of one width.

    Attributes:
        packed: two levels to a byte.
        largest_level: levels lie in -largest_level..largest_level.
        largest_scale: the largest scale whose product with `largest_level` is finite.
    """

    packed: bool
    largest_level: int
    largest_scale: np.float32

    def head_bytes(self, count: int) -> int:
        """Length of the scales for `count` values."""
        return scale.SCALE_BYTES * _blocks(count)

    def section_bytes(self, count: int) -> int:
        """Length of the levels of `count` values."""
        return nibbles.packed_bytes(count) if self.packed else count

    def body_bytes(self, count: int) -> int:
        """Length of the body for `count` values, before compression."""
        return self.head_bytes(count) + self.section_bytes(count)

    def measure(self, source: Source) -> Float32Array:
        """Finite float32[n] -> the scales, float32[blocks]."""
        largest = np.empty(_blocks(len(source)), np.float32)
        for part in parts(len(source)):
            rows = _in_blocks(source[part])
            first = part.start // BLOCK
            np.abs(rows).max(axis=1, out=largest[first : first + len(rows)])
        largest /= np.float32(self.largest_level)
        return scale.rounded(largest)

    def write_head(self, scales: Float32Array) -> bytes:
        return scale.to_bytes(scales)

    def read_head(self, head: memoryview) -> Float32Array:
        """The scales, float32[blocks].

        Raises:
            CodecError: a scale is out of range.
        """
        return scale.from_bytes(head, self.largest_scale)

    def write(
        self, x: Float32Array, start: int, scales: Float32Array, rounding: Stochastic | None
    ) -> tuple[bytes, Float32Array]:
        """Code a slice.

        Args:
            x: float32[count], finite.
            start: place of the first value, a multiple of `BLOCK`.
            scales: of the whole vector.
            rounding: chance; None for the nearest level.

        Returns:
            The section, and float32[count] as it will be decoded.
        """
        rows = _in_blocks(x)
        own = scales[start // BLOCK :][: len(rows)]
        divisors: Float32Array = np.where(own == 0, np.float32(np.inf), own)
        quotients = to_levels(rows / divisors[:, None], start, rounding)
        if rounding is not None:
            np.clip(quotients, -self.largest_level, self.largest_level, out=quotients)
        levels = quotients.astype(np.int8)
        flat = levels.reshape(-1)[: len(x)]
        section = nibbles.pack((flat & np.int8(15)).view(np.uint8)) if self.packed else flat.tobytes()
        return section, _decoded(levels, own, len(x))

    def read(self, section: memoryview, start: int, count: int, scales: Float32Array) -> Float32Array:
        """The section of a slice, of the right length -> float32[count].

        Raises:
            CodecError: a level is out of range, or a block with scale zero has a level.
        """
        if self.packed:
            numbers = nibbles.unpack(section, count).view(np.int8)
            flat = (numbers ^ 8) - np.int8(8)  # extends the sign
        else:
            flat = np.frombuffer(section, np.int8)
        levels = _in_blocks(flat)
        own = scales[start // BLOCK :][: len(levels)]
        if levels.min(initial=0) < -self.largest_level:
            raise CodecError("a level is out of range")
        if levels[own == 0].any():
            raise CodecError("a block with scale zero has values")
        return _decoded(levels, own, count)

    def quantise(self, x: Float32Array, rounding: Stochastic | None = None) -> tuple[bytes, Float32Array]:
        """Finite float32[count] -> the body, and float32[count] as it will be decoded."""
        scales = self.measure(x)
        section, sent = self.write(x, 0, scales, rounding)
        return self.write_head(scales) + section, sent

    def dequantise(self, body: memoryview, count: int) -> Float32Array:
        """The body, of the right length -> float32[count].

        Raises:
            CodecError: a scale or a level is out of range, or a block with scale zero has a level.
        """
        cut = self.head_bytes(count)
        return self.read(body[cut:], 0, count, self.read_head(body[:cut]))


INT8: Final = Blockwise(packed=False, largest_level=127, largest_scale=np.float32(129 / 128 * 2.0**121))
INT4: Final = Blockwise(packed=True, largest_level=7, largest_scale=np.float32(146 / 128 * 2.0**125))


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _in_blocks(x: NDArray[_Number]) -> NDArray[_Number]:
    """x[count] -> x[blocks, 64], the last block filled with zeros."""
    if len(x) % BLOCK == 0:
        return x.reshape(-1, BLOCK)
    padded = np.zeros(_blocks(len(x)) * BLOCK, x.dtype)
    padded[: len(x)] = x
    return padded.reshape(-1, BLOCK)


def _decoded(levels: NDArray[np.int8], scales: Float32Array, count: int) -> Float32Array:
    """int8[blocks, 64] times float32[blocks]; never -0, since a level has one zero and a scale no sign."""
    return (levels * scales[:, None]).reshape(-1)[:count]
