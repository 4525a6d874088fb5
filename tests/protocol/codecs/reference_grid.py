"""A second decoder of the grid code, written from docs/protocol-codecs.md: one column after another.

It is slow and trusts its input. It shares nothing with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, getcontext
from functools import cache
from math import prod

_M = 2**24 - 4097


@cache
def big_g(u: int) -> int:
    """2**28 log2(1 + u / 256), rounded."""
    getcontext().prec = 40
    return round((1 + Decimal(u) / 256).ln() / Decimal(2).ln() * 2**28)


@cache
def big_e(u: int) -> int:
    """2**(24 - u / 256), rounded."""
    getcontext().prec = 40
    return round(((24 - Decimal(u) / 256) * Decimal(2).ln()).exp())


def lg(y: int) -> int:
    """Of y > 0."""
    i = y.bit_length() - 1
    t: int = 2**24 * y // 2**i - 2**24
    u = t >> 16
    return 2**28 * i + big_g(u) + ((big_g(u + 1) - big_g(u)) * (t % 2**16) >> 16)


def power(d: int) -> int:
    """P(d)."""
    q, u, v = d >> 31, (d >> 23) % 256, (d >> 7) % 2**16
    between = big_e(u) - ((big_e(u) - big_e(u + 1)) * v >> 16)
    return between >> q


class State:
    """The events' state and bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.x = list(data), 0
        self.fill()

    def fill(self) -> None:
        while self.x < 2**32 and self.data:
            self.x = 256 * self.x + self.data.pop(0)

    def event(self, start: int, size: int) -> bool:
        place = self.x % 2**24
        if not start <= place < start + size:
            return False
        self.x = size * (self.x // 2**24) + place - start
        self.fill()
        return True

    def number(self, c: int) -> int:
        size = 2**24 // c
        return next(i for i in range(c) if self.event(i * size, size))


def indices(section: bytes, k: int, shapes: Sequence[Sequence[int]]) -> list[int]:
    """The indices of a section."""
    state, places, first = State(section), list[int](), 0
    for shape in shapes:
        s = prod(shape)
        if s and len(places) < k:
            places += [first + place for place in _tensor(state, shape, k - len(places))]
        first += s
    assert state.x == 0
    assert not state.data
    assert len(places) == k
    return sorted(places)


def _tensor(state: State, shape: Sequence[int], left: int) -> list[int]:
    s = prod(shape)
    rows, columns = (shape[0], s // shape[0]) if len(shape) > 1 else (1, s)
    turned = rows > columns
    if turned:
        rows, columns = columns, rows
    length = state.number(min(left, s).bit_length() + 1)
    if length == 0:
        return []
    a, b = 2 ** state.number(4), 2 ** state.number(4)
    h, above, places = [a] * columns, 0, list[int]()
    for r in range(rows):
        w = 2 * (a * columns + 8 * above)
        y = b * w * rows * (r + 4) // (8 * (above * rows + 3 * 2**length)) + 1
        hit: list[int] = []
        for c in range(0, columns, 4096):
            y = _segment(state, h, (c, min(c + 4096, columns)), (y, b), hit, left - above)
        for j in hit:
            h[j] += 8
            places.append(j * rows + r if turned else r * columns + j)
        above += len(hit)
        if above == left:
            break
    return places


def _segment(
    state: State, h: list[int], part: tuple[int, int], numbers: tuple[int, int], hit: list[int], left: int
) -> int:
    (c, e), (y, b) = part, numbers
    while c < e and len(hit) < left:
        m, origin = len(hit), lg(y)

        def begin(at: int, passed: int, e8: int = b + 8 * m, origin: int = origin) -> int:
            return _M - (_M * power(e8 * (lg(at) - origin)) >> 24) + passed

        at = y
        for j in range(c, e):
            start, end = begin(at, j - c), begin(at + 2 * h[j], j - c + 1)
            if state.event(start, end - start):
                hit.append(j)
                y, c = at + h[j], j + 1
                break
            at += 2 * h[j]
        else:
            start = begin(at, e - c)
            assert state.event(start, 2**24 - start)
            y, c = at, e
    return y
