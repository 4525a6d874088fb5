"""The grid code: exact, agreed between two decoders, shorter where rows and columns are busy, deaf to lies."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from decimal import Decimal, getcontext
from math import lgamma, log, prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import grid, grid_model, rice
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs import reference_grid

Indices = NDArray[np.int64]
Shapes = tuple[tuple[int, ...], ...]
Case = tuple[Shapes, Indices]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Shapes of every kind, and indices that are even, in busy rows and columns, or all in one tensor."""
    dims = st.one_of(
        st.just(()),
        st.tuples(st.integers(0, 200)),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 8), st.integers(0, 4), st.integers(1, 3), st.integers(1, 3)),
    )
    shapes = tuple(draw(st.lists(dims, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.003, 0.03, 0.3, 0.9, 1.0]))
    parts = []
    for shape in shapes:
        rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
        rates = np.full((rows, columns), density)
        if draw(st.booleans()):
            rates *= np.outer(rng.exponential(size=rows), rng.exponential(size=columns))
        parts.append((rng.random((rows, columns)) < rates * draw(st.sampled_from([0, 1, 1, 3]))).ravel())
    chosen = np.flatnonzero(np.concatenate(parts)) if parts else np.empty(0, np.int64)
    return shapes, chosen


def size(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes)


@given(cases())
@example((((1,),), np.array([0])))
@example((((),), np.array([0])))
@example((((9000,),), np.array([0, 4095, 4096, 8191, 8192, 8999])))
@example((((9000,),), np.array([8999])))
@example((((2, 5000),), np.array([4999, 5000, 9999])))
@example((((5000, 2),), np.array([0, 1, 9999])))
@example((((70, 30),), np.arange(2100)))
def test_round_trip_and_a_second_decoder(case: Case) -> None:
    shapes, indices = case
    n, k = size(shapes), len(indices)
    section = grid.encode(indices, n, shapes)
    assert reference_grid.indices(section, k, shapes) == indices.tolist()
    if len(section) <= grid.max_bytes(n, k):
        decoded = grid.decode(memoryview(section), n, k, shapes)
        assert decoded.dtype == np.uint32
        assert np.array_equal(decoded, indices)


def test_without_shapes_the_vector_is_one_row() -> None:
    indices = np.array([3, 99, 4096, 9998])
    section = grid.encode(indices, 10_000)
    assert section == grid.encode(indices, 10_000, [(10_000,)])
    assert grid.decode(memoryview(section), 10_000, 4).tolist() == indices.tolist()


def test_the_tables_are_what_the_document_says() -> None:
    getcontext().prec = 40
    assert [reference_grid.big_g(u) for u in range(257)] == grid_model.LOGS
    assert [reference_grid.big_e(u) for u in range(257)] == grid_model.POWERS
    exact = [(1 + Decimal(u) / 256).ln() / Decimal(2).ln() * 2**28 for u in range(1, 256)]
    exact += [((24 - Decimal(u) / 256) * Decimal(2).ln()).exp() for u in range(1, 256)]
    assert all(abs(value % 1 - Decimal("0.5")) > Decimal("0.0001") for value in exact)


@given(
    st.lists(st.tuples(st.integers(1, 2**40 - 1), st.integers(1, 2**19), st.integers(0, 4096)), min_size=1),
    st.integers(1, 2**20),
)
def test_arrays_and_numbers_agree(drawn: list[tuple[int, int, int]], first: int) -> None:
    y, exponents, columns = (np.array(each, np.int64) for each in zip(*drawn, strict=True))
    y = np.maximum(y, first)
    origins = grid_model.logs(np.full(len(y), first))
    assert set(origins.tolist()) == {grid_model.log(first)}
    assert grid_model.logs(y).tolist() == [grid_model.log(each) for each in y.tolist()]
    assert grid_model.logs(y).tolist() == [reference_grid.lg(each) for each in y.tolist()]
    found = grid_model.edges(y, origins, exponents, columns).tolist()
    one_by_one = zip(y.tolist(), exponents.tolist(), columns.tolist(), strict=True)
    assert found == [grid_model.edge(a, grid_model.log(first), e, c) for a, e, c in one_by_one]


def test_no_number_reaches_2_to_the_53() -> None:
    """Doubles count so far: the extremes of what the limits allow, hostile ones included."""
    for rows in (1, 2, 64, 4096):
        columns = grid_model.MAX_SIZE // rows
        for hits in (0, 1, 2 * rows, grid_model.MAX_HITS):
            weight = 2 * (8 * columns + 8 * hits)
            assert 8 * weight * rows * (rows + 3) < 2**53
            model = grid_model.Model(1, 8, 8)
            last = model.before(grid_model.Grid(0, rows, columns, turned=False), rows - 1, hits) + weight
            assert last < 2**40
            assert (8 + 8 * grid_model.MAX_HITS) * (grid_model.log(last) - 0) < 2**53


@pytest.mark.parametrize("density", [0.003, 0.01, 0.1])
def test_busy_rows_and_columns_cost_little_more_than_if_they_were_known(density: float) -> None:
    rng = np.random.default_rng(7)
    rates = np.outer(rng.gamma(0.5, 2.0, 300), rng.gamma(0.5, 2.0, 500))
    rates = 1 - np.exp(-density * rates)
    hit = rng.random(rates.shape) < rates
    indices = np.flatnonzero(hit)
    ideal = -np.log2(np.where(hit, rates, 1 - rates)).sum()  # had the decoder known all rates
    bits = 8 * len(grid.encode(indices, rates.size, [rates.shape]))
    learning = 0.5 * np.log2(len(indices)) * 800  # half a logarithm a parameter (Rissanen)
    assert bits <= ideal + 0.5 * learning
    assert bits < 0.92 * 8 * len(rice.encode(indices, rates.size))


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1])
def test_evenly_spread_indices_cost_little_more_than_their_entropy(density: float) -> None:
    n, shapes = 301_066, ((512, 64), (512,), (512, 512), (512,), (10, 512), (10,))
    indices = np.flatnonzero(np.random.default_rng(3).random(n) < density)
    k = len(indices)
    bound = (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)
    assert bound <= 8 * len(grid.encode(indices, n, shapes)) <= 1.06 * bound + 250


SMALL: Shapes = ((6, 9), (5,), (12, 3, 2))


@given(st.binary(max_size=60), st.integers(0, 131))
def test_any_bytes_give_indices_or_a_codec_error(data: bytes, k: int) -> None:
    try:
        indices = grid.decode(memoryview(data), 131, k, SMALL)
    except CodecError:
        return
    assert len(indices) == k
    assert np.all(np.diff(indices.astype(np.int64), prepend=-1) > 0)
    assert k == 0 or indices[-1] < 131
    assert reference_grid.indices(data, k, SMALL) == indices.tolist()


@given(cases(), st.data())
def test_damage_gives_other_indices_or_a_codec_error(case: Case, data: st.DataObject) -> None:
    shapes, indices = case
    n = size(shapes)
    section = bytearray(grid.encode(indices, n, shapes))
    for _ in range(data.draw(st.integers(1, 3))):
        if section:
            section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    k = max(0, len(indices) + data.draw(st.integers(-1, 1)))
    try:
        decoded = grid.decode(memoryview(bytes(section)), n, k, shapes).astype(np.int64)
    except CodecError:
        return
    assert len(decoded) == k
    assert np.all(np.diff(decoded, prepend=-1) > 0)
    assert k == 0 or decoded[-1] < n


@pytest.mark.parametrize(
    ("section", "n", "k", "reason"),
    [
        (b"\x01", 131, 0, "too-large"),  # bytes where there is no index
        (b"\x00\x05", 131, 4, "malformed"),
        (b"", 131, 132, "malformed"),
        (b"", 131, -1, "malformed"),
        (b"\x01" * 200, 131, 4, "too-large"),
        (b"", 131, 2**70, "malformed"),
        (b"", grid_model.MAX_SIZE, grid_model.MAX_HITS + 1, "too-large"),
        (b"", grid_model.MAX_SIZE + 1, 1, "too-large"),
    ],
)
def test_lies_are_refused(section: bytes, n: int, k: int, reason: str) -> None:
    with pytest.raises(CodecError) as caught:
        grid.decode(memoryview(section), n, k, SMALL if n == 131 else None)
    assert caught.value.reason == reason


def test_every_byte_counts() -> None:
    indices = np.flatnonzero(np.random.default_rng(5).random(131) < 0.3)
    section = grid.encode(indices, 131, SMALL)
    for wrong in (section[:-1], section[1:], section + b"\x01", b"\x01" + section):
        with pytest.raises(CodecError):
            grid.decode(memoryview(wrong), 131, len(indices), SMALL)


@settings(max_examples=10)
@given(st.binary(min_size=100, max_size=20_000))
def test_memory_stays_bounded(data: bytes) -> None:
    n, k = 4_000_000, 5_000
    tracemalloc.start()
    with suppress(CodecError):
        grid.decode(memoryview(data), n, k, [(1000, 2000), (2_000_000,)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * k + 4 * n + 300_000


@pytest.mark.parametrize("indices", [[3, 3], [4, 3], [10], [-1]])
def test_misuse_raises(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="strictly"):
        grid.encode(np.array(indices), 10)


def test_shapes_of_another_vector_raise() -> None:
    with pytest.raises(ValueError, match="shapes"):
        grid.encode(np.array([1]), 10, [(3, 3)])
    with pytest.raises(ValueError, match="shapes"):
        grid.decode(memoryview(b"\x01"), 10, 1, [(3, 3)])


def test_the_cost_grows_with_hits_rows_and_columns_and_has_an_end() -> None:
    square = [(1000, 1000)]
    assert grid.cost_ns(10**6, 100, square) < grid.cost_ns(10**6, 1000, square)
    assert grid.cost_ns(10**6, 100, [(10**6,)]) < grid.cost_ns(10**6, 100, square)
    assert grid.cost_ns(10**6, grid_model.MAX_HITS + 1, square) == float("inf")
    # A row of 50,000 columns is read in 13 pieces, each of which costs what a row does, or more.
    wide = [(50_000, 200)]
    assert grid.cost_ns(10**7, 10, wide) > 13 * 200 * grid.cost_ns(200, 0, [(200,)])
    assert grid.cost_ns(10**7, 5000, wide) > 2 * grid.cost_ns(10**6, 5000, square)
    with pytest.raises(ValueError, match="more than this code takes"):
        grid.encode(np.arange(grid_model.MAX_HITS + 1), 10**6)
