"""Cases of the grid code: index sets that lie at every edge of it, and what must be refused."""

from __future__ import annotations

from math import prod
from typing import Final

import numpy as np

from fedmq_protocol.codecs import grid, grid_model
from fedmq_protocol.errors import CodecError
from tests.protocol.vectors.form import Case, Plain, raised

Shapes = list[list[int]]

_BUSY_COLUMN: Final = [50 * row + 17 for row in range(0, 40, 2)] + [1999]
_BUSY_ROW: Final = [50 * 23 + column for column in range(0, 50, 3)]
_RIGHT: Final[dict[str, tuple[Shapes, list[int]]]] = {
    "nothing": ([[3, 4]], []),
    "one of one": ([[]], [0]),
    "all": ([[2, 3], [2]], [0, 1, 2, 3, 4, 5, 6, 7]),
    "one row": ([[100]], [0, 1, 50, 99]),
    "taller than wide": ([[7, 3]], [0, 1, 6, 7, 20]),
    "square": ([[5, 5]], [0, 6, 7, 12, 24]),
    "a tensor without hits and one without elements": ([[4, 4], [6], [0, 5], [4, 4]], [1, 2, 25, 30]),
    "four dimensions": ([[6, 5, 3, 3]], [0, 44, 45, 90, 93, 180, 269]),
    "segments": ([[2, 9000]], [4095, 4096, 8191, 8192, 8999, 9000, 13095, 13096, 17999]),
    "hits in the last column": ([[3, 4]], [3, 7, 11]),
    "one column is busy": ([[40, 50]], _BUSY_COLUMN),
    "one row is busy": ([[40, 50]], _BUSY_ROW),
    "the busy row and column of a tensor on its side": (
        [[50, 40]],
        sorted({place % 50 * 40 + place // 50 for place in _BUSY_COLUMN + _BUSY_ROW}),
    ),
}
_WRONG: Final[dict[str, tuple[Shapes, int, str]]] = {
    "bytes where there is no index": ([[3, 4]], 0, "01"),
    "a zero at the front": ([[3, 4]], 2, "0001"),
    "a state that does not end at 0": ([[3, 4]], 1, "0102030405"),
    "a number that is none of three": ([[3, 4]], 2, "ffffff"),
    "more bytes than Rice codes may take": ([[3, 4]], 2, "01" * 40),
    "more indices than elements": ([[3, 4]], 13, "010203"),
    "more indices than the code takes": ([[300, 300]], 65537, "010203"),
    "more elements than the code takes": ([[4097, 4096]], 1, "010203"),
}


def grid_cases() -> list[Case]:
    """All of them."""
    tables = Case("the tables", "grid_tables", {}, {"G": grid_model.LOGS, "E": grid_model.POWERS})
    right = [_right(name, *case) for name, case in _RIGHT.items()]
    some = _RIGHT["one row is busy"]
    section = bytes.fromhex(right[-2].given["section"])
    short = {
        "an index too few": (some[0], len(some[1]) - 1, section.hex()),
        "a byte missing": (some[0], len(some[1]), section[:-1].hex()),
        "a byte too many": (some[0], len(some[1]), (section + b"\x05").hex()),
    }
    return [tables, *right, *(_wrong(name, *case) for name, case in (_WRONG | short).items())]


def indices(given: Plain) -> Plain:
    """The answer to `indices`."""
    n = sum(prod(shape) for shape in given["shapes"])
    found = grid.decode(memoryview(bytes.fromhex(given["section"])), n, given["k"], given["shapes"])
    return {"indices": found.tolist()}


def _right(name: str, shapes: Shapes, places: list[int]) -> Case:
    section = grid.encode(np.array(places, np.int64), sum(prod(shape) for shape in shapes), shapes)
    given: Plain = {"shapes": shapes, "k": len(places), "section": section.hex()}
    return Case(name, "indices", given, {"indices": places})


def _wrong(name: str, shapes: Shapes, k: int, section: str) -> Case:
    given: Plain = {"shapes": shapes, "k": k, "section": section}
    try:
        indices(given)
    except CodecError as error:
        return Case(name, "indices", given, error=raised(error))
    raise AssertionError(f"{name}: not refused")
