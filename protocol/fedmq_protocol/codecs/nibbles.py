"""Numbers of four bits, two to a byte: the earlier one in the upper half, zero filling the last byte."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.errors import CodecError

_PAIRS: Final = (
    np.array([(byte >> 4, byte & 15) for byte in range(256)], np.uint8).view(np.uint16).reshape(-1)
)
"""For each byte its two numbers, as they lie in memory: one look-up unpacks both."""


def packed_bytes(count: int) -> int:
    """How many bytes `count` numbers take."""
    return (count + 1) // 2


def pack(numbers: NDArray[np.uint8]) -> bytes:
    """uint8[count], each below 16 -> `packed_bytes(count)` bytes."""
    padded = np.zeros(2 * packed_bytes(len(numbers)), np.uint8)
    padded[: len(numbers)] = numbers
    return (padded[::2] << 4 | padded[1::2]).tobytes()


def unpack(data: memoryview, count: int) -> NDArray[np.uint8]:
    """The numbers back, from exactly `packed_bytes(count)` bytes.

    Raises:
        CodecError: the filling is not zero.
    """
    numbers = _PAIRS.take(np.frombuffer(data, np.uint8)).view(np.uint8)
    if numbers[count:].any():
        raise CodecError("the filling of the last byte is not zero")
    return numbers[:count]
