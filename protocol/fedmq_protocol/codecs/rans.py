"""An entropy coder of integers alone: range asymmetric numeral systems with one state, a byte at a time.

J. Duda, "Asymmetric numeral systems", arXiv:1311.2540. An event is an interval [start, start + size) of 0..2**24 - 1,
as large as the event is likely. Encoding runs backwards, decoding forwards:

    encode: x -> 2**24 (x div size) + start + x mod size,  bytes leaving the low end of x before x would reach 2**40
    decode: the event is the one that x mod 2**24 lies in;  x -> size (x div 2**24) + x mod 2**24 - start

The encoder begins with x = 0 and the decoder must end there with no byte left, so damage is noticed. No number reaches
2**41: a language whose only numbers are doubles computes all of it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedmq_protocol.errors import CodecError

BITS: Final = 24
TOTAL: Final = 1 << BITS
_LOW: Final = 1 << 32  # below this the decoder takes a byte
_ROOM: Final = 16  # the encoder gives bytes while x >= size << _ROOM


def encode(starts: Sequence[int], sizes: Sequence[int]) -> bytes:
    """Code events, each an interval of 0..2**24 - 1 that is not empty.

    Returns:
        At most 5 + 3 len(starts) bytes; none if x stays 0, as with no event.
    """
    x = 0
    tail = bytearray()
    for start, size in zip(reversed(starts), reversed(sizes), strict=True):
        limit = size << _ROOM
        while x >= limit:
            tail.append(x & 255)
            x >>= 8
        quotient, rest = divmod(x, size)
        x = (quotient << BITS) + start + rest
    tail.reverse()
    return x.to_bytes((x.bit_length() + 7) // 8, "big") + tail


class Decoder:
    """Reads events back, the first first.

    Args:
        section: what `encode` wrote, and nothing after it.

    Raises:
        CodecError: it begins with a zero, which no encoder writes.
    """

    def __init__(self, section: memoryview) -> None:
        if len(section) and section[0] == 0:
            raise CodecError("the coded events begin with a zero")
        self._bytes = iter(section.tobytes())
        self._x = 0
        self._fill()

    def peek(self) -> int:
        """The place in 0..2**24 - 1 that tells which event is next."""
        return self._x & (TOTAL - 1)

    def take(self, start: int, size: int) -> None:
        """Go on behind the event [start, start + size), which holds `peek()`."""
        self._x = size * (self._x >> BITS) + (self._x & (TOTAL - 1)) - start
        if self._x < _LOW:
            self._fill()

    def bit(self, ones: int) -> int:
        """Read a bit that is 1 in the first `ones` of 2**24 places."""
        low = self._x & (TOTAL - 1)
        if low < ones:
            x, bit = ones * (self._x >> BITS) + low, 1
        else:
            x, bit = (TOTAL - ones) * (self._x >> BITS) + low - ones, 0
        self._x = x
        if x < _LOW:
            self._fill()
        return bit

    def uniform(self, count: int) -> int:
        """One of `count` equally likely numbers.

        Raises:
            CodecError: the place is in none of their intervals.
        """
        size = TOTAL // count
        number = self.peek() // size
        if number >= count:
            raise CodecError("an event that is none of those possible")
        self.take(number * size, size)
        return number

    def finish(self) -> None:
        """Make sure that nothing is left.

        Raises:
            CodecError: something is; the section is damaged.
        """
        if self._x != 0 or next(self._bytes, None) is not None:
            raise CodecError("the coded events do not end where they should")

    def _fill(self) -> None:
        x = self._x
        while x < _LOW:
            byte = next(self._bytes, None)
            if byte is None:
                break
            x = x << 8 | byte
        self._x = x


def uniform(number: int, count: int) -> tuple[int, int]:
    """Start and size of one of `count` equally likely numbers."""
    size = TOTAL // count
    return number * size, size
