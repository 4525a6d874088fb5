"""What the grid code expects of a tensor: where the next hit lies in a row, in integers.

The change of a weight matrix is a sum of outer products, of what leaves a layer with what enters it, so its large
elements lie where a busy row meets a busy column; error feedback does not hide that. Each tensor is a grid, and the
hits in it are taken for a Poisson process with an intensity row times column:

- A column's weight is A / 8 + the hits in it so far: up to a factor, the mean of a gamma distribution of shape A / 8.
- A row's intensity has a gamma distribution of shape b / 8, whose mean is that of the rows so far. Having passed
  columns of weight x with m hits among them, the next one, of weight w, is empty with probability
  ((B + x) / (B + x + w)) ** (b / 8 + m), with B = (b / 8) (weight of all columns) / (mean hits a row). The distance
  to the next hit has a Lomax distribution.
- A column that is hit counts with half its weight in x, as if the hit came in its middle.

Powers come from two tables of logarithms, linear between their entries, so that everybody computes the same bits.
Weights are in sixteenths here. Within `MAX_SIZE` and `MAX_HITS` no number reaches 2**53.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log2, prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import rans

MAX_SIZE: Final = 1 << 24
"""Longest vector."""
MAX_HITS: Final = 1 << 16
SEGMENT: Final = 4096
"""Columns that one event may span; longer rows are cut."""

UNIT: Final = 8
"""Weights and shapes are told in eighths."""
GAMMA_SHAPES: Final = (1, 2, 4, 8)
"""What A and b may be."""

_ROWS_BEFORE: Final = 4  # the told count weighs as much as so many rows
_OPEN: Final = rans.TOTAL - SEGMENT - 1  # what probabilities share; the rest gives each column at least one
_FRACTION: Final = 28  # bits of a logarithm behind the point

LOGS: Final[list[int]] = [round(2**_FRACTION * log2(1 + i / 256)) for i in range(257)]
"""Entry i: log2(1 + i / 256), in units of 2**-28."""
POWERS: Final[list[int]] = [round(2.0 ** (rans.BITS - i / 256)) for i in range(257)]
"""Entry i: 2**(-i / 256), in units of 2**-24."""
_LOG_STEPS: Final = [after - before for before, after in pairwise(LOGS)]
_POWER_STEPS: Final = [before - after for before, after in pairwise(POWERS)]
_LOG_ARRAY, _LOG_STEP_ARRAY = np.array(LOGS, np.int64), np.array(_LOG_STEPS, np.int64)
_POWER_ARRAY, _POWER_STEP_ARRAY = np.array(POWERS, np.int64), np.array(_POWER_STEPS, np.int64)

Shapes = Sequence[Sequence[int]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """A tensor, its smaller side down: at most 4096 rows."""

    start: int
    """Of its elements in the vector."""
    rows: int
    columns: int
    turned: bool
    """Whether the columns are the tensor's first dimension."""

    def cells(self, places: Ints) -> tuple[Ints, Ints]:
        """Rows and columns of elements, ordered by row, then by column."""
        local = places - self.start
        if self.turned:
            local = np.sort(local % self.rows * self.columns + local // self.rows)
        return local // self.columns, local % self.columns

    def place(self, row: int, column: int) -> int:
        """The element in the vector."""
        return self.start + (column * self.rows + row if self.turned else row * self.columns + column)

    def magnitudes(self, left: int) -> int:
        """How many bit lengths the number of hits may have, when so many are left."""
        return min(left, self.rows * self.columns).bit_length() + 1


@dataclass(frozen=True)
class Model:
    """What is told of a grid that has hits."""

    magnitude: int
    """The bit length of their count."""
    column_shape: int
    """A, of the columns' weights, in eighths."""
    row_shape: int
    """b, of the rows' intensities, in eighths."""

    def before(self, grid: Grid, row: int, hits: int) -> int:
        """B, as if so much weight had been passed before the row's first column; `hits` in the rows above."""
        weight = 2 * (self.column_shape * grid.columns + UNIT * hits)
        mean = hits * grid.rows + 3 * (1 << self.magnitude)  # times rows (row + 4)
        return self.row_shape * weight * grid.rows * (row + _ROWS_BEFORE) // (UNIT * mean) + 1


def grids(n: int, shapes: Shapes | None) -> Iterator[Grid]:
    """The grids of the tensors that make up a vector of n; those without elements are left out.

    Raises:
        ValueError: the shapes are not of n.
    """
    shapes = [(n,)] if shapes is None else shapes
    if sum(prod(shape) for shape in shapes) != n:
        raise ValueError(f"the shapes are not those of a vector of {n}")
    start = 0
    for shape in shapes:
        size = prod(shape)
        if size:
            first = shape[0] if len(shape) > 1 else 1
            turned = first > size // first
            rows = size // first if turned else first
            yield Grid(start, rows, size // rows, turned)
            start += size


def row_numbers(places: Ints, shapes: Shapes) -> Ints:
    """For elements of a vector, which row of which tensor, counted through; a tensor of one dimension is one row."""
    sizes = np.array([prod(shape) for shape in shapes], np.int64)
    rows = np.array([shape[0] if len(shape) > 1 else 1 for shape in shapes], np.int64)
    ends = np.cumsum(sizes)
    tensor = np.searchsorted(ends, places, side="right")
    widths = sizes // np.maximum(rows, 1)
    within = (places - (ends - sizes)[tensor]) // widths[tensor]
    numbers: Ints = (np.cumsum(rows) - rows)[tensor] + within.astype(np.int64)
    return numbers


def log(y: int) -> int:
    """log2(y) in units of 2**-28, for 0 < y < 2**40."""
    whole = y.bit_length() - 1
    mantissa = (y << rans.BITS >> whole) - rans.TOTAL  # 24 bits
    entry = mantissa >> 16
    return (whole << _FRACTION) + LOGS[entry] + (_LOG_STEPS[entry] * (mantissa & 0xFFFF) >> 16)


def edge(y: int, origin: int, exponent: int, columns: int) -> int:
    """Where the event begins that some columns are passed and the next is hit.

    Args:
        y: B and the weight before that column.
        origin: `log` of B and the weight where the last event left off.
        exponent: b / 8 + m, in eighths.
        columns: how many are passed.

    Returns:
        2**24 times the probability that the hit comes sooner, nearly.
    """
    # `log` once more: this function is most of a decoder's time
    whole = y.bit_length() - 1
    mantissa = (y << rans.BITS >> whole) - rans.TOTAL
    entry = mantissa >> 16
    log_y = (whole << _FRACTION) + LOGS[entry] + (_LOG_STEPS[entry] * (mantissa & 0xFFFF) >> 16)
    power = exponent * (log_y - origin)  # 31 bits behind the point
    halvings = power >> 31
    if halvings > rans.BITS:
        return _OPEN + columns
    entry = power >> 23 & 0xFF
    empty = POWERS[entry] - (_POWER_STEPS[entry] * (power >> 7 & 0xFFFF) >> 16) >> halvings
    return _OPEN - (_OPEN * empty >> rans.BITS) + columns


def guess(slot: int, here: int, exponent: int) -> float:
    """The weight up to which the hit comes sooner with probability slot / 2**24, in real numbers: not exact."""
    empty = max(_OPEN - slot, 1) / _OPEN
    return float(here * empty ** (-UNIT / exponent))


def logs(y: Ints) -> Ints:
    """`log` of each."""
    whole = np.frexp(y.astype(np.float64))[1].astype(np.int64) - 1
    mantissa = np.left_shift(y, np.maximum(rans.BITS - whole, 0))
    mantissa = np.right_shift(mantissa, np.maximum(whole - rans.BITS, 0)) - rans.TOTAL
    entry = mantissa >> 16
    between = _LOG_STEP_ARRAY[entry] * (mantissa & 0xFFFF) >> 16
    result: Ints = (whole << _FRACTION) + _LOG_ARRAY[entry] + between
    return result


def edges(y: Ints, origins: Ints, exponents: Ints, columns: Ints) -> Ints:
    """`edge` of each."""
    power = exponents * (logs(y) - origins)
    halvings = np.minimum(power >> 31, rans.BITS + 1)
    entry = power >> 23 & 0xFF
    between = _POWER_STEP_ARRAY[entry] * (power >> 7 & 0xFFFF) >> 16
    empty = np.right_shift(_POWER_ARRAY[entry] - between, halvings)
    result: Ints = _OPEN - (_OPEN * empty >> rans.BITS) + columns
    return result
