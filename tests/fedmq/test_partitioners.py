"""Cutting a data set: every example once, a few for each device, the same cut everywhere."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.partitioners import MIN_EXAMPLES, PARTITIONERS, part_of, partition
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_protocol.errors import UsageError

LABELS = np.repeat(np.arange(10), 144)


@given(
    kind=st.sampled_from(sorted(PARTITIONERS)),
    num_partitions=st.integers(1, 40),
    seed=st.integers(0, 2**53),
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 80),
)
def test_every_example_is_in_one_part_and_no_part_is_poor(
    kind: str, num_partitions: int, seed: int, counts: list[int]
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = partition(kind, labels, num_partitions, seed=seed)
    assert len(parts) == num_partitions
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert min(map(len, parts)) >= min(MIN_EXAMPLES, len(labels) // num_partitions)
    assert all(first < second for part in parts for first, second in pairwise(part.tolist()))


@pytest.mark.parametrize("kind", sorted(PARTITIONERS))
def test_a_cut_follows_from_its_seed(kind: str) -> None:
    def cut(seed: int) -> list[list[int]]:
        return [part.tolist() for part in partition(kind, LABELS, 10, seed=seed)]

    assert cut(3) == cut(3)
    assert cut(3) != cut(4)


def test_cuts_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for kind in ("iid", "shards"):
        for part in partition(kind, LABELS, 10, seed=2024):
            digest.update(part.astype("<i8").tobytes())
    assert digest.hexdigest() == "30e0f5068643fd109c9c7217a4cb0d68b1f114945e2a7839251e257a77d9109d"


def test_iid_parts_are_of_one_size_and_mixture() -> None:
    parts = partition("iid", LABELS, 10, seed=1)
    assert {len(part) for part in parts} == {144}
    counts = np.array([np.bincount(LABELS[part], minlength=10) for part in parts])
    # hypergeometric: mean 14.4, standard deviation 3.4
    assert counts.min() > 14.4 - 5 * 3.4
    assert counts.max() < 14.4 + 5 * 3.4


def test_shards_hold_few_classes() -> None:
    for part in partition("shards", LABELS, 10, seed=1):
        assert len(np.unique(LABELS[part])) <= 4  # two shards, each across one border at most
        assert len(part) == 144


def test_dirichlet_grows_even_with_alpha() -> None:
    def unevenness(alpha: float) -> float:
        """Mean over seeds of the total variation distance between a device's mixture and the whole's."""
        distances = []
        for seed in range(5):
            for part in partition("dirichlet", LABELS, 10, seed=seed, alpha=alpha):
                mixture = np.bincount(LABELS[part], minlength=10) / len(part)
                distances.append(np.abs(mixture - 0.1).sum() / 2)
        return float(np.mean(distances))

    values = [unevenness(alpha) for alpha in (0.05, 0.3, 3.0, 1000.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.6
    assert values[-1] < 0.03


def test_dirichlet_shares_have_their_mean_and_variance() -> None:
    """A device's share of a class: mean 1/m, variance (1/m)(1 - 1/m) / (m alpha + 1)."""
    m, alpha = 5, 0.8
    labels = np.repeat(np.arange(2), 2000)
    shares = np.array(
        [
            [
                np.sum(labels[part] == 0) / 2000
                for part in partition("dirichlet", labels, m, seed=seed, alpha=alpha)
            ]
            for seed in range(400)
        ]
    )
    assert shares.mean() == pytest.approx(1 / m)
    assert shares.var() == pytest.approx((1 / m) * (1 - 1 / m) / (m * alpha + 1), rel=0.1)


@pytest.mark.parametrize(
    ("kind", "count", "settings", "says"),
    [
        ("quantity", 10, {}, "there is no partition 'quantity'; there are iid, dirichlet, shards"),
        ("iid", 1441, {}, "1440 examples cannot be cut into 1441 partitions"),
        ("iid", 0, {}, "into 0 partitions"),
        ("iid", 10, {"alpha": 0.3}, "unexpected keyword argument 'alpha'"),
        ("dirichlet", 10, {"alpha": 0.0}, "must be above 0"),
        ("shards", 10, {"shards_per_partition": 200}, "lower shards_per_partition"),
    ],
)
def test_what_cannot_be_cut_is_told(kind: str, count: int, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        partition(kind, LABELS, count, **settings)


def test_a_devices_part_follows_from_its_settings() -> None:
    settings = {
        "partition": "dirichlet",
        "alpha": 0.5,
        "partition_id": 2,
        "num_partitions": 4,
        "seed": 7,
        "folder": "x",
    }
    mine = part_of(DeviceContext.of(settings), LABELS)
    np.testing.assert_array_equal(mine, partition("dirichlet", LABELS, 4, seed=7, alpha=0.5)[2])
