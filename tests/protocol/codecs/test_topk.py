"""Selection is exact and depends on the values alone."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import select, topk
from fedmq_protocol.codecs.slices import Difference
from tests.protocol.codecs.vectors_for_tests import hard_vectors

Vector = NDArray[np.float32]


def by_sorting(p: Vector, k: int) -> NDArray[np.int64]:
    """The definition: sort by falling magnitude, then by rising index; take k; put them in order."""
    return np.sort(np.lexsort((np.arange(len(p)), -np.abs(p)))[:k])


@given(hard_vectors(), st.data())
def test_agrees_with_sorting(p: Vector, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(p)))
    chosen = select(p, k)
    assert np.array_equal(chosen, by_sorting(p, k))
    kept, rest = np.square(p[chosen], dtype=np.float64).sum(), np.square(p, dtype=np.float64).sum()
    if len(p):
        assert rest - kept <= (1 - k / len(p)) * rest * (1 + 1e-12)


@pytest.mark.parametrize("k", [1, 2, 97, 1000, 5000, 49_999, 99_999, 100_000])
@pytest.mark.parametrize("kind", ["normal", "ties", "period", "rising", "one", "zeros", "infinite"])
def test_long_vectors_agree_with_sorting(kind: str, k: int) -> None:
    n, rng = 100_000, np.random.default_rng(1)
    p = {
        "normal": rng.standard_normal(n),
        "ties": rng.integers(-3, 4, n),
        "period": np.where(
            np.arange(n) % 97 == 0, 100.0, rng.random(n)
        ),  # the sample sees only the large ones
        "rising": np.arange(n),
        "one": np.ones(n),
        "zeros": np.zeros(n),
        "infinite": np.where(rng.random(n) < 0.001, -np.inf, rng.standard_normal(n)),
    }[kind].astype(np.float32)
    assert np.array_equal(select(p, k), by_sorting(p, k))


@given(hard_vectors(), st.data())
def test_counting_agrees_with_sorting(p: Vector, data: st.DataObject) -> None:
    if len(p) == 0:
        return
    k = data.draw(st.integers(1, len(p)))
    assert np.array_equal(topk._by_counting(p, k), by_sorting(p, k))


def test_long_vectors_take_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    p = np.random.default_rng(2).standard_normal(1_000_000, dtype=np.float32)
    expected = by_sorting(p, 10_000)
    monkeypatch.delattr(topk, "_by_counting")
    assert np.array_equal(select(p, 10_000), expected)


@pytest.mark.parametrize("k", [10, 1000, 90_000])
def test_a_difference_is_looked_at_without_being_formed(k: int) -> None:
    rng = np.random.default_rng(3)
    one, other = (rng.standard_normal(100_000, dtype=np.float32) for _ in range(2))
    assert np.array_equal(select(Difference(one, other), k), by_sorting(one - other, k))


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_memory_follows_k(kind: str) -> None:
    """The second vector is mostly zeros, as the difference of two versions is, and its sample misleads."""
    n, k, rng = 4_000_000, 20_000, np.random.default_rng(4)
    p = rng.standard_normal(n, dtype=np.float32)
    if kind == "ties":
        p[rng.random(n) < 0.999] = 0
    tracemalloc.start()
    select(p, k)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * (2 * k + 65_536), "with n in it, it would be 16 MB"


def test_misuse_raises() -> None:
    p = np.array([1.0, np.nan], np.float32)
    with pytest.raises(ValueError, match="NaN"):
        select(p, 1)
    with pytest.raises(ValueError, match="outside"):
        select(p[:1], 2)
    with pytest.raises(ValueError, match="outside"):
        select(p[:1], -1)
    with pytest.raises(ValueError, match="float32"):
        select(p.astype(np.float64), 1)


def test_nothing_of_nothing() -> None:
    assert select(np.empty(0, np.float32), 0).shape == (0,)
