"""rand-k: distinct, sorted, even, and the same for everyone who knows the seed."""

from __future__ import annotations

import hashlib
from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedmq_protocol.codecs import randk
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs import reference_random


@given(st.integers(0, 2**64 - 1), st.integers(0, 3000), st.floats(0, 1))
@example(3, 1, 1.0)
@example(3, 2, 0.5)
@example(3, 4096, 0.5)
@example(3, 2049, 0.5)
def test_distinct_sorted_and_as_the_page_says(seed: int, n: int, share: float) -> None:
    k = round(share * n)
    chosen = randk.indices(seed, n, k)
    assert chosen.dtype == np.uint32
    assert len(chosen) == k
    assert np.all(chosen[1:] > chosen[:-1])
    assert chosen.tolist() == reference_random.mask(seed, n, k)
    assert np.array_equal(randk.read(memoryview(randk.write(seed)), n, k), chosen)


def test_every_set_is_equally_likely() -> None:
    """Chi-square over the ten pairs out of five, and their complements; 27.9 with 9 degrees is one in a thousand."""
    draws = 4000
    for k in (2, 3):
        counts = dict.fromkeys(combinations(range(5), k), 0)
        for seed in range(draws):
            counts[tuple(randk.indices(seed, 5, k).tolist())] += 1
        expected = draws / 10
        assert sum((count - expected) ** 2 for count in counts.values()) / expected < 27.9


def test_large_sets_are_even() -> None:
    """Of a thousand equal bins each holds its share; the variance is that of drawing without replacement."""
    n, k, bins = 10_000_019, 100_000, 1000
    counts = np.bincount(randk.indices(11, n, k).astype(np.int64) * bins // n, minlength=bins)
    expected = k / bins
    chi_square = float(np.sum((counts - expected) ** 2)) / (expected * (1 - k / n))
    assert abs(chi_square - (bins - 1)) < 5 * sqrt(2 * (bins - 1))


def test_scaled_values_are_right_in_expectation() -> None:
    """The mean over many seeds lies within 5 standard errors of the vector, element by element."""
    rng = np.random.default_rng(0)
    vector, k, seeds = rng.normal(size=40).astype(np.float32), 10, 4000
    total = np.zeros(40)
    for seed in range(seeds):
        chosen = randk.indices(seed, 40, k)
        total[chosen] += randk.unbiased(vector[chosen], 40)
    error = np.abs(vector) * sqrt((40 / k - 1) / seeds)
    assert np.all(np.abs(total / seeds - vector) <= 5 * error)


def test_the_shared_seed_is_the_hash_that_the_page_says() -> None:
    digest = hashlib.sha256(b"fedmq rand-k" + (7).to_bytes(8, "big") + (3).to_bytes(8, "big")).digest()
    assert randk.shared_seed(7, 3) == int.from_bytes(digest[:8], "little")
    assert len({randk.shared_seed(run, version) for run in range(30) for version in range(30)}) == 900


@pytest.mark.parametrize("section", [b"", bytes(7), bytes(9)])
def test_a_seed_of_another_length_is_refused(section: bytes) -> None:
    with pytest.raises(CodecError):
        randk.read(memoryview(section), 10, 2)


def test_more_than_there_are_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="outside"):
        randk.indices(0, 5, 6)
