"""Signs and levels of kept values, each bit expected from those before it: an optional way to write a sparse body.

What leaves a neuron changes all of its weights with one sign where what enters it is never negative, as behind ReLU, so
a sign is expected from those before it in the same row of its tensor (its first dimension). A level of the magnitude is
expected from the level before. Both by counting: after a zeros and b ones in the same context, a one has probability
(2 b + 1) / (2 (a + b) + 2), the estimator of R. E. Krichevsky and V. K. Trofimov (IEEE Trans. Inf. Theory 27, 1981).

For each value a sign, then its level from the highest bit to the lowest, all in one `rans` section. A sign's context is
how far the signs of its row so far lean to one side (0, 1, 2, 3 or more), and whether the last one in the row leans the
same way; its bit is 1 where it agrees with the leaning. A level bit's context is the bits above it and the upper three
bits of the level before, of whatever row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import rans
from fedmq_protocol.codecs.grid_model import Shapes, row_numbers
from fedmq_protocol.errors import CodecError

NAME: Final = "signs/1"
MAX_BITS: Final = 1 << 17
"""Of signs and levels together: what a decoder in Python reads in about a tenth of a second."""

_LEANINGS: Final = 3
_SIGN_CONTEXTS: Final = 2 * (_LEANINGS + 1)
_KNOWN_BITS: Final = 3  # of the level before
_BIT_NS: Final = 500.0

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Symbols:
    """How a value code's body falls into signs and levels.

    Attributes:
        head_bytes: what stands before the values.
        level_bits: of a level, which is below 2**level_bits.
        apart: the values' bytes and their count -> which are negative, bool[count], and the levels, int64[count].
        joined: the way back.
    """

    head_bytes: int
    level_bits: int
    apart: Callable[[bytes, int], tuple[Flags, Ints]]
    joined: Callable[[Flags, Ints], bytes]


def cost_ns(count: int, symbols: Symbols) -> float:
    """What decoding in Python takes, roughly; infinite beyond this code's bounds."""
    bits = count * (1 + symbols.level_bits)
    return inf if bits > MAX_BITS else _BIT_NS * bits


def encode(body: bytes, symbols: Symbols, indices: NDArray[np.integer], shapes: Shapes) -> bytes:
    """The body of a value code, written shorter.

    Args:
        body: of at least one value.
        symbols: the value code's.
        indices: int[k], where the values belong.
        shapes: of the tensors.
    """
    head, values = body[: symbols.head_bytes], body[symbols.head_bytes :]
    negative, levels = symbols.apart(values, len(indices))
    bits, contexts = _sign_events(negative, row_numbers(indices.astype(np.int64), shapes))
    level_bits, level_contexts = _level_events(levels, symbols.level_bits)
    bits = np.concatenate([bits[:, None], level_bits], axis=1).ravel()
    contexts = np.concatenate([contexts[:, None], level_contexts + _SIGN_CONTEXTS], axis=1).ravel()
    ones, seen = _counted(bits, contexts)
    cut = _share_of_ones(ones, seen)
    starts = np.where(bits == 1, 0, cut)
    sizes = np.where(bits == 1, cut, rans.TOTAL - cut)
    return head + rans.encode(starts.tolist(), sizes.tolist())


def decode(section: memoryview, symbols: Symbols, indices: NDArray[np.integer], shapes: Shapes) -> bytes:
    """The body back.

    Raises:
        CodecError: the section is not what `encode` writes. No more memory is taken than 200 bytes for each value.
    """
    count = len(indices)
    if count * (1 + symbols.level_bits) > MAX_BITS:
        raise CodecError(f"{count} values are more than may be written so", reason="too-large")
    if len(section) < symbols.head_bytes or not count:
        raise CodecError("the values end within their head")
    source = rans.Decoder(section[symbols.head_bytes :])
    rows = row_numbers(indices.astype(np.int64), shapes).tolist()
    negative, levels = _read(source, rows, symbols.level_bits)
    source.finish()
    joined = symbols.joined(np.array(negative, np.bool_), np.array(levels, np.int64))
    return bytes(section[: symbols.head_bytes]) + joined


def _read(source: rans.Decoder, rows: list[int], level_bits: int) -> tuple[list[bool], list[int]]:
    ones = [0] * (_SIGN_CONTEXTS + (1 << _KNOWN_BITS + level_bits))
    seen = ones.copy()
    unknown = max(level_bits - _KNOWN_BITS, 0)
    negative: list[bool] = []
    levels: list[int] = []
    last_row, leaning, last, level = -1, 0, 1, 0
    for row in rows:
        if row != last_row:
            last_row, leaning, last = row, 0, 1
        side = 1 if leaning >= 0 else -1
        context = 2 * min(leaning * side, _LEANINGS) + (last == side)
        last = side if _read_bit(source, ones, seen, context) else -side
        leaning += last
        negative.append(last < 0)
        base = _SIGN_CONTEXTS + (level >> unknown << level_bits)
        node = 1
        for _ in range(level_bits):
            node = 2 * node + _read_bit(source, ones, seen, base + node)
        level = node - (1 << level_bits)
        levels.append(level)
    return negative, levels


def _read_bit(source: rans.Decoder, ones: list[int], seen: list[int], context: int) -> int:
    bit = source.bit((2 * ones[context] + 1 << rans.BITS) // (2 * seen[context] + 2))
    ones[context] += bit
    seen[context] += 1
    return bit


def _share_of_ones(ones: Ints, seen: Ints) -> Ints:
    share: Ints = (2 * ones + 1 << rans.BITS) // (2 * seen + 2)
    return share


def _sign_events(negative: Flags, rows: Ints) -> tuple[Ints, Ints]:
    """Bits and contexts of the signs, int64[k] each; rows do not fall."""
    signs = np.where(negative, -1, 1)
    first = np.concatenate([[True], np.diff(rows) != 0])
    total = np.cumsum(signs) - signs
    leaning = total - total[np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))]
    side = np.where(leaning >= 0, 1, -1)
    last = np.where(first, 1, np.roll(signs, 1))
    contexts = 2 * np.minimum(leaning * side, _LEANINGS) + (last == side)
    return (signs == side).astype(np.int64), contexts


def _level_events(levels: Ints, level_bits: int) -> tuple[Ints, Ints]:
    """Bits and contexts of the levels, int64[k, level_bits] each."""
    places = np.arange(level_bits - 1, -1, -1)
    bits = levels[:, None] >> places & 1
    nodes = (levels[:, None] | 1 << level_bits) >> places + 1  # the bits above, with a one before them
    before = np.concatenate([[0], levels[:-1]]) >> max(level_bits - _KNOWN_BITS, 0)
    return bits, (before << level_bits)[:, None] + nodes


def _counted(bits: Ints, contexts: Ints) -> tuple[Ints, Ints]:
    """For each bit, how many ones and how many bits came before it in the same context."""
    order = np.argsort(contexts, kind="stable")
    grouped = bits[order]
    first = np.concatenate([[0], np.flatnonzero(np.diff(contexts[order])) + 1])
    group = np.repeat(first, np.diff(np.append(first, len(bits))))
    ones_so_far = np.cumsum(grouped) - grouped
    ones, seen = np.empty_like(bits), np.empty_like(bits)
    ones[order] = ones_so_far - ones_so_far[group]
    seen[order] = np.arange(len(bits)) - group
    return ones, seen
