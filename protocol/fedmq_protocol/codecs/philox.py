"""Philox-4x32-10: random bits that everyone computes alike, from any place of a stream on.

J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11. A block of
128 bits is a function of a counter (four 32-bit words) and a key (two): ten rounds of two 32 x 32 -> 64-bit
multiplications. There is no state, so any slice of a stream is made without those before it, and 32-bit integers are
all that it takes.

Here the key is a 64-bit seed, low word first, and the counter is (number of the block, part, purpose, 0), so that
streams for different ends never meet.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.decoded import UInt32Array

BLOCK_BYTES: Final = 16
MAX_SEED: Final = 2**64 - 1

WEIGHTS: Final = 1
"""The purpose of streams that first weights are drawn from."""
INDICES: Final = 2
"""The purpose of streams that indices are drawn from."""

_ROUNDS: Final = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # the golden ratio and sqrt(3) - 1, which step the key
_WORD: Final = 0xFFFF_FFFF
_LOW: Final = np.uint64(_WORD)
_SHIFT: Final = np.uint64(32)
_SLICE: Final = 1 << 14  # blocks that are made at once


def philox(counters: UInt32Array, key: tuple[int, int]) -> UInt32Array:
    """The block cipher itself.

    Args:
        counters: uint32[m, 4].
        key: two words below 2**32.

    Returns:
        uint32[m, 4].
    """
    c0, c1, c2, c3 = (counters[:, word].astype(np.uint64) for word in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * _M0, c2 * _M1  # at most (2**32 - 1)**2: nothing is lost
        c0, c1, c2, c3 = (
            (second >> _SHIFT) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> _SHIFT) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(seed: int, purpose: int, part: int, first: int, count: int) -> UInt32Array:
    """Blocks `first`, ..., `first + count - 1` of a stream, one after another.

    Args:
        seed: 0..2**64 - 1.
        purpose: `WEIGHTS` or `INDICES`.
        part: which of the streams with this purpose.
        first: number of the first block.
        count: how many blocks; `first + count` is at most 2**32.

    Returns:
        uint32[4 * count].

    Raises:
        ValueError: something is out of range.
    """
    if not (0 <= seed <= MAX_SEED and 0 <= first <= first + count <= _WORD + 1):
        raise ValueError(f"seed {seed} or blocks {first} + {count} are out of range")
    key = (seed & _WORD, seed >> 32)
    made = np.empty((count, 4), np.uint32)
    for start in range(0, count, _SLICE):
        numbers = np.arange(first + start, first + min(start + _SLICE, count), dtype=np.uint64)
        counters = np.zeros((len(numbers), 4), np.uint32)
        counters[:, 0], counters[:, 1], counters[:, 2] = numbers, part, purpose
        made[start : start + _SLICE] = philox(counters, key)
    return made.reshape(-1)


def block_bytes(blocks: UInt32Array) -> NDArray[np.uint8]:
    """Words as bytes, the lowest byte of each first: uint32[m] -> uint8[4 m]."""
    return blocks.astype("<u4", copy=False).view(np.uint8)
