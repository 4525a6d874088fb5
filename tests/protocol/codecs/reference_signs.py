"""A second decoder of `signs`, written from docs/protocol-codecs.md, a bit at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from tests.protocol.codecs.reference_grid import State


def values(
    section: bytes, indices: Sequence[int], level_bits: int, shapes: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """The sign, 1 or -1, and the level of each value."""
    state, found, before = State(section), list[tuple[int, int]](), 0
    counts: Counter[tuple[object, int]] = Counter()

    def bit(context: object) -> int:
        a, b = counts[context, 0], counts[context, 1]
        s = 2**24 * (2 * b + 1) // (2 * (a + b) + 2)
        value = 1 if state.event(0, s) else 0
        assert value or state.event(s, 2**24 - s)
        counts[context, value] += 1
        return value

    signs_of: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        row = signs_of.setdefault(_row(index, shapes), [])
        t, u = sum(row), row[-1] if row else 1
        v = 1 if t >= 0 else -1
        sign = v if bit(("sign", min(abs(t), 3), u == v)) else -v
        row.append(sign)
        level, upper = "", before >> max(level_bits - 3, 0)
        for _ in range(level_bits):
            level += str(bit(("level", level, upper)))
        before = int(level or "0", 2)
        found.append((sign, before))
    assert state.x == 0
    assert not state.data
    return found


def _row(index: int, shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    for tensor, shape in enumerate(shapes):
        if index < prod(shape):
            return tensor, index // prod(shape[1:]) if len(shape) > 1 else 0
        index -= prod(shape)
    raise AssertionError
