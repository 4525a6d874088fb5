"""Rice-coded gaps: exact, compact, and deaf to lies."""

from __future__ import annotations

import tracemalloc
from math import lgamma, log

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import rice
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs import reference_decoder

Indices = NDArray[np.int64]
MOST = 2**31 - 1


@st.composite
def index_sets(draw: st.DrawFn) -> tuple[int, Indices]:
    """A length and sorted indices below it: even, clustered, or with gaps of every size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    match draw(st.sampled_from(["even", "clustered", "wild"])):
        case "even":
            n = draw(st.integers(1, 3000))
            chosen = np.flatnonzero(rng.random(n) < draw(st.sampled_from([0.003, 0.01, 0.1, 0.5, 0.9, 1.0])))
        case "clustered":
            n = draw(st.integers(1, 20_000))
            chosen = np.flatnonzero(rng.random(n) < rng.random(n // 50 + 1)[np.arange(n) // 50] ** 8)
        case _:
            gaps = np.exp2(rng.uniform(0, draw(st.integers(1, 22)), draw(st.integers(1, 300)))).astype(
                np.int64
            )
            chosen = np.cumsum(gaps)
            n = int(chosen[-1]) + draw(st.integers(1, 1000))
    return n, chosen.astype(np.int64)


@given(index_sets())
@example((1, np.array([0])))
@example((MOST, np.array([MOST - 1])))
@example((MOST, np.array([0, MOST - 1])))
@example((MOST, np.append(np.arange(5000), MOST - 1)))
@example((70, np.arange(70)))
@example((10, np.array([], np.int64)))
def test_round_trip(case: tuple[int, Indices]) -> None:
    n, indices = case
    section = rice.encode(indices, n)
    assert len(section) <= rice.max_bytes(n, len(indices))
    decoded = rice.decode(memoryview(section), n, len(indices))
    assert decoded.dtype == np.uint32
    assert np.array_equal(decoded, indices)
    assert reference_decoder.indices(section, len(indices)) == indices.tolist()


@pytest.mark.parametrize(
    ("n", "density"), [(301_066, 0.001), (301_066, 0.01), (301_066, 0.05), (301_066, 0.3)]
)
def test_evenly_spread_indices_cost_little_more_than_their_entropy(n: int, density: float) -> None:
    indices = np.flatnonzero(np.random.default_rng(3).random(n) < density)
    k = len(indices)
    bound = (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)
    assert bound <= 8 * len(rice.encode(indices, n)) <= 1.04 * bound + 100


def test_clustered_indices_cost_less_than_evenly_spread_ones() -> None:
    rng = np.random.default_rng(4)
    dense, thin = np.flatnonzero(rng.random(50_000) < 0.05), np.flatnonzero(rng.random(250_000) < 0.002)
    clustered = np.concatenate([dense, 50_000 + thin])
    even = np.sort(rng.choice(300_000, len(clustered), replace=False))
    assert len(rice.encode(clustered, 300_000)) < 0.85 * len(rice.encode(even, 300_000))


@given(st.binary(max_size=200), st.integers(0, 5000), st.integers(0, 5000))
def test_any_bytes_give_indices_or_a_codec_error(data: bytes, n: int, k: int) -> None:
    try:
        indices = rice.decode(memoryview(data), n, k)
    except CodecError:
        return
    assert len(indices) == k
    assert np.all(np.diff(indices.astype(np.int64), prepend=-1) > 0)
    assert k == 0 or indices[-1] < n
    assert reference_decoder.indices(data, k) == indices.tolist()


@given(index_sets(), st.data())
def test_damage_gives_other_indices_or_a_codec_error(case: tuple[int, Indices], data: st.DataObject) -> None:
    n, indices = case
    section = bytearray(rice.encode(indices, n))
    for _ in range(data.draw(st.integers(1, 3))):
        if section:
            section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    k = max(0, len(indices) + data.draw(st.integers(-1, 1)))
    try:
        decoded = rice.decode(memoryview(bytes(section)), n, k).astype(np.int64)
    except CodecError:
        return
    assert np.all(np.diff(decoded, prepend=-1) > 0)
    assert k == 0 or decoded[-1] < n


@pytest.mark.parametrize(
    ("section", "n", "k", "text"),
    [
        (b"\x00", 5, 0, "at most 0"),  # bytes where there is no index
        (b"", 5, 1, "parameters"),
        (b"\x00", 5, 1, "parameters"),
        (b"\x00\x00", 5, 1, "low bits"),
        (b"\x1f\x10\x80", 5, 1, "parameter is out of range"),  # 31 + 1
        (b"\x00\x01\x80", 5, 1, "filling"),  # a nibble for a block that is not there
        (b"\x00\x00\x00", 5, 1, "found 0"),
        (b"\x00\x00\xc0", 5, 1, "found 2"),
        (b"\x00\x00\x80\x00", 5, 1, "bytes after"),
        (b"\x00\x00\x04", 5, 1, "past the end"),  # index 5
        (b"\x01\x00\x00\x20", 4, 1, "past the end"),  # 2 << 1
        (b"\x01\x00\x01\x80", 5, 1, "filling"),  # the low bit of a gap that is not there
        (b"\x02\x00\x80\x00\x40", 6, 1, "past the end"),  # 1 << 2 | 2
        (b"\x00\x00\x80", 0, 1, "1 indices"),
    ],
)
def test_lies_are_named(section: bytes, n: int, k: int, text: str) -> None:
    with pytest.raises(CodecError, match=text):
        rice.decode(memoryview(section), n, k)


def test_a_lie_about_the_count_takes_no_memory() -> None:
    long = memoryview(bytes(100_000))
    tracemalloc.start()
    for k in (MOST, 2**63, 10**30):
        with pytest.raises(CodecError):
            rice.decode(memoryview(b"\x00" * 100), MOST, k)
    with pytest.raises(CodecError):
        rice.decode(long, MOST, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000


@pytest.mark.parametrize("indices", [[3, 3], [4, 3], [10], [-1]])
def test_misuse_raises(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="strictly"):
        rice.encode(np.array(indices), 10)
