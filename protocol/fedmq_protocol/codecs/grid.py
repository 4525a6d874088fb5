"""Sorted indices as hits in the rows and columns of each tensor: the index code that fits updates best.

`grid_model` has the expectations, `rans` the bits. A hit is one event: how far to go, or that nothing more comes before
the row's end. The bit length of the number of hits, A and b are told for each tensor. `docs/protocol-codecs.md` has all
of it to the bit.

The encoder works on whole tensors with NumPy. The decoder cannot know a row before the one above it, and takes some
microseconds of Python for each hit and segment: hence `MAX_HITS`, and `cost_ns` for encoders to keep within their time.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import rans, rice
from fedmq_protocol.codecs.decoded import UInt32Array
from fedmq_protocol.codecs.grid_model import (
    GAMMA_SHAPES,
    MAX_HITS,
    MAX_SIZE,
    SEGMENT,
    UNIT,
    Grid,
    Ints,
    Model,
    Shapes,
    edge,
    edges,
    grids,
    guess,
    log,
    logs,
)
from fedmq_protocol.errors import CodecError

_GUESSES: Final = 4  # tries near a guess before bisection takes over
_HIT_NS, _SEGMENT_NS = 3_500.0, 8_000.0
_PASSED_NS: Final = 3.0  # for each column of a segment with hits


def cost_ns(n: int, k: int, shapes: Shapes | None = None) -> float:
    """What decoding k of n indices in Python takes, roughly; infinite beyond this code's bounds."""
    if n > MAX_SIZE or k > MAX_HITS:
        return inf
    segments = sum(grid.rows * -(-grid.columns // SEGMENT) for grid in grids(n, shapes))
    return _HIT_NS * k + _SEGMENT_NS * segments + _PASSED_NS * min(n, SEGMENT * k)


def max_bytes(n: int, k: int) -> int:
    """The longest section that `decode` takes: as long as a Rice code may be, which is used where it is shorter."""
    return rice.max_bytes(n, k)


def encode(indices: NDArray[np.integer], n: int, shapes: Shapes | None = None) -> bytes:
    """Code strictly increasing indices below `n`.

    Args:
        indices: int[k].
        n: length of the vector they point into.
        shapes: of the tensors that make up the vector, in order; None for one row of n.

    Returns:
        The section; no bytes for k = 0. One longer than `max_bytes` is of no use.

    Raises:
        ValueError: the indices are not strictly increasing within 0..n-1, beyond the bounds of this code, or the
            shapes are not of n.
    """
    k = len(indices)
    places: Ints = indices.astype(np.int64)
    if k and (places[0] < 0 or places[-1] >= n or np.any(np.diff(places) <= 0)):
        raise ValueError(f"indices must increase strictly within 0..{n - 1}")
    if n > MAX_SIZE or k > MAX_HITS:
        raise ValueError(f"{k} of {n} indices are more than this code takes")
    events: list[_Events] = []
    left = k
    for grid in grids(n, shapes):
        if left == 0:
            break
        first, last = np.searchsorted(places, [grid.start, grid.start + grid.rows * grid.columns])
        row, column = grid.cells(places[first:last])
        count = len(row)
        events.append(_told(count.bit_length(), grid.magnitudes(left)))
        left -= count
        if count:
            model = _fitted(grid, row, column)
            told = GAMMA_SHAPES.index(model.column_shape), GAMMA_SHAPES.index(model.row_shape)
            events += [_told(number, len(GAMMA_SHAPES)) for number in told]
            events.append(_hits(grid, model, row, column, last_of_all=left == 0))
    starts = [start for each in events for start in each.starts.tolist()]
    sizes = [size for each in events for size in each.sizes.tolist()]
    return rans.encode(starts, sizes)


def decode(section: memoryview, n: int, k: int, shapes: Shapes | None = None) -> UInt32Array:
    """The indices back.

    Args:
        section: what `encode` wrote, and nothing after it.
        n: length of the vector they point into.
        k: how many there are, 0 <= k <= n; the caller has checked that n itself is acceptable.
        shapes: as for `encode`.

    Returns:
        uint32[k], strictly increasing, each below `n`.

    Raises:
        CodecError: the section is not the code of such indices. Whatever it says, no more memory is taken than 48
            bytes for each of k and four for each of n.
        ValueError: the shapes are not of n.
    """
    if not 0 <= k <= n:
        raise CodecError(f"{k} indices into a vector of {n}")
    if n > MAX_SIZE or k > MAX_HITS or len(section) > max_bytes(n, k):
        raise CodecError(f"{len(section)} bytes for {k} indices into a vector of {n}", reason="too-large")
    source = rans.Decoder(section)
    places: list[int] = []
    for grid in grids(n, shapes):
        left = k - len(places)
        if left == 0:
            break
        magnitude = source.uniform(grid.magnitudes(left))
        if magnitude:
            column, row = (GAMMA_SHAPES[source.uniform(len(GAMMA_SHAPES))] for _ in range(2))
            places += _read(source, grid, Model(magnitude, column, row), left)
    source.finish()
    if len(places) != k:
        raise CodecError(f"expected {k} indices, found {len(places)}")
    found = np.array(places, np.uint32)
    found.sort()
    return found


@dataclass(frozen=True)
class _Events:
    """Intervals for `rans`, int64[events] each."""

    starts: Ints
    sizes: Ints


def _told(number: int, count: int) -> _Events:
    start, size = rans.uniform(number, count)
    return _Events(np.array([start]), np.array([size]))


def _fitted(grid: Grid, row: Ints, column: Ints) -> Model:
    """The shapes under which the counts of columns and of rows are most likely."""
    count = len(row)
    ranks_in_columns = _ranks(np.bincount(column, minlength=grid.columns))
    ranks_in_rows = _ranks(np.bincount(row, minlength=grid.rows))
    mean = count / grid.rows

    def of_columns(shape: int) -> float:  # Polya's urn: sum of log (a + i) / (a columns + j)
        a = shape / UNIT
        drawn = np.log(a + np.arange(len(ranks_in_columns))) @ ranks_in_columns
        return float(drawn - np.log(a * grid.columns + np.arange(count)).sum())

    def of_rows(shape: int) -> float:  # negative binomial, without what does not depend on the shape
        b = shape / UNIT
        drawn = np.log(b + np.arange(len(ranks_in_rows))) @ ranks_in_rows
        return float(drawn + grid.rows * b * np.log(b / (b + mean)) - count * np.log(b + mean))

    return Model(count.bit_length(), max(GAMMA_SHAPES, key=of_columns), max(GAMMA_SHAPES, key=of_rows))


def _ranks(counts: Ints) -> Ints:
    """Entry i: how many of the counts are above i."""
    ranks: Ints = np.cumsum(np.bincount(counts)[::-1])[::-1][1:]
    return ranks


def _hits(grid: Grid, model: Model, row: Ints, column: Ints, *, last_of_all: bool) -> _Events:
    """The events of a grid: hits, and ends of segments. Hits come ordered."""
    passed, weight, segments = _weights(grid, model, row, column)
    ends = np.minimum(np.arange(1, segments.shape[1] + 1) * SEGMENT, grid.columns)
    # Ends stand before a hit in the column behind them.
    keys = np.concatenate(
        [
            2 * (row * grid.columns + column) + 1,
            2 * (np.arange(grid.rows)[:, None] * grid.columns + ends).ravel(),
        ]
    )
    order = np.argsort(keys, kind="stable")
    count, others = len(row), grid.rows * len(ends)
    hit = np.repeat([True, False], [count, others])[order]
    rows = np.concatenate([row, np.repeat(np.arange(grid.rows), len(ends))])[order]
    columns = np.concatenate([column, np.tile(ends, grid.rows)])[order]
    widths = np.concatenate([weight, np.zeros(others, np.int64)])[order]
    passed = np.concatenate([passed, 2 * np.cumsum(segments, axis=1).ravel()])[order]

    first = np.searchsorted(rows, np.arange(grid.rows))  # a row's first event; each row has one
    hits_before, width_before = np.cumsum(hit) - hit, np.cumsum(widths) - widths
    hits_above = hits_before[first]
    before = np.array([model.before(grid, r, int(above)) for r, above in enumerate(hits_above)])
    here = before[rows] + passed - (width_before - width_before[first][rows])
    since = np.empty_like(here)  # where the last event left off
    since[1:] = (here + widths)[:-1]
    column_since = np.empty_like(columns)
    column_since[1:] = (columns + hit)[:-1]
    since[first], column_since[first] = before, 0

    exponents = model.row_shape + UNIT * (hits_before - hits_above[rows])
    origins, gone = logs(since), columns - column_since
    low = edges(here, origins, exponents, gone)
    high = np.where(hit, edges(here + 2 * widths, origins, exponents, gone + 1), np.int64(rans.TOTAL))
    said = (gone > 0) | hit
    if last_of_all:
        said[np.flatnonzero(hit)[-1] + 1 :] = False
    return _Events(low[said], (high - low)[said])


def _weights(grid: Grid, model: Model, row: Ints, column: Ints) -> tuple[Ints, Ints, Ints]:
    """What the columns weigh when a hit comes.

    Returns:
        For each hit the double weight of the columns before it, int64[hits], and its column's weight, int64[hits];
        the weight of each segment of each row, int64[rows, segments].
    """
    weights = np.full(grid.columns, model.column_shape, np.int64)
    passed, mine = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    starts = np.arange(0, grid.columns, SEGMENT)
    segments = np.empty((grid.rows, len(starts)), np.int64)
    segments[0] = np.add.reduceat(weights, starts)
    cuts = np.searchsorted(row, np.arange(grid.rows + 1)).tolist()
    for r, (begin, end) in enumerate(pairwise(cuts)):
        if r:
            segments[r] = segments[r - 1]
            np.add.at(segments[r], column[cuts[r - 1] : begin] // SEGMENT, UNIT)
        if begin < end:
            hit = column[begin:end]
            mine[begin:end] = weights[hit]
            passed[begin:end] = 2 * (np.cumsum(weights)[hit] - mine[begin:end])
            weights[hit] += UNIT
    return passed, mine, segments


def _read(source: rans.Decoder, grid: Grid, model: Model, left: int) -> list[int]:
    """The hits in a grid, at most `left`, which are then the last of all."""
    weights = np.full(grid.columns, model.column_shape, np.int32)
    starts = range(0, grid.columns, SEGMENT)
    segments = [2 * model.column_shape * min(SEGMENT, grid.columns - start) for start in starts]
    places: list[int] = []
    for row in range(grid.rows):
        here = model.before(grid, row, len(places))
        found: list[int] = []
        for start, segment in zip(starts, segments, strict=True):
            part = weights[start : start + SEGMENT]
            exponent = model.row_shape + UNIT * len(found)
            hits, here = _read_segment(
                source, part, (here, segment), exponent, left - len(places) - len(found)
            )
            found += [start + hit for hit in hits]
            if len(places) + len(found) == left:
                break
        if found:
            places += [grid.place(row, column) for column in found]
            if len(places) == left:
                break
            weights[found] += UNIT
            for column in found:
                segments[column // SEGMENT] += 2 * UNIT
    return places


def _read_segment(
    source: rans.Decoder, weights: NDArray[np.int32], weight: tuple[int, int], exponent: int, left: int
) -> tuple[list[int], int]:
    """The hits in one row's segment, at most `left`.

    Args:
        source: of events.
        weights: int32[columns], in eighths.
        weight: B and what was passed before the segment, and that of the segment; in sixteenths.
        exponent: b / 8 + hits so far in the row, in eighths.
        left: how many hits may come.

    Returns:
        The hits' columns; B and the weight passed behind the segment.
    """
    here, beyond = weight[0], weight[0] + weight[1]
    hits: list[int] = []
    passed: memoryview | None = None
    column, columns = 0, len(weights)
    offset = here  # the weight passed before a column is offset + passed[column]
    while column < columns:
        origin, slot = log(here), source.peek()
        low, start, high, end = (
            column,
            0,
            columns + 1,
            rans.TOTAL,
        )  # the event of `columns` is the segment's end
        if passed is None:  # most rows of a thin grid are empty
            last = edge(beyond, origin, exponent, columns - column)
            if slot >= last:
                source.take(last, rans.TOTAL - last)
                break
            high, end = columns, last
            passed = _passed(weights)
        # Real numbers say where to look, the integers found there decide.
        middle = bisect_right(passed, guess(slot, here, exponent) - offset) - 1
        tries = 0
        while high - low > 1:
            if middle <= low:
                middle = low + 1
            elif middle >= high:
                middle = high - 1
            found = edge(offset + passed[middle], origin, exponent, middle - column)
            if found <= slot:
                low, start, middle = middle, found, middle + 1
            else:
                high, end, middle = middle, found, middle - 1
            tries += 1
            if tries > _GUESSES:
                middle = (low + high) // 2
        source.take(start, end - start)
        if low == columns:
            break
        hits.append(low)
        if len(hits) == left:
            break
        width = (passed[low + 1] - passed[low]) // 2
        here = offset + passed[low] + width
        offset -= width
        beyond -= width
        exponent += UNIT
        column = low + 1
    return hits, beyond


def _passed(weights: NDArray[np.int32]) -> memoryview:
    """Entry c: the weight of the columns before c, in sixteenths, for 0 <= c <= columns.

    A view, since a list of the thousands of numbers in a wide segment takes longer than looking at a few of them.
    """
    passed = np.zeros(len(weights) + 1, np.int64)
    np.cumsum(weights, out=passed[1:])
    passed *= 2
    return passed.data
