"""Cutting one data set into the parts of many devices, for trying out: in production each device has its own data.

    partition("dirichlet", labels, 10, seed=0, alpha=0.3)

- `iid`: shuffled, in parts of equal size.
- `dirichlet`: of each class, a device gets a share drawn from Dirichlet(alpha); small alpha, few classes a device
  (Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution", arXiv:1909.06335).
- `shards`: sorted by class, cut into `shards_per_partition` pieces a device, dealt out at random (McMahan et al. 2017,
  "Communication-Efficient Learning of Deep Networks from Decentralized Data", section 3).

A cut depends on the labels, the number of partitions and the seed alone, so devices agree on it without a word.
Shuffles use nothing but the generator's raw numbers, which NumPy keeps as they are from version to version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.errors import UsageError

Indices = NDArray[np.intp]
Labels = NDArray[Any]
Partitioner = Callable[..., list[Indices]]
"""(labels, num_partitions, generator, **settings) -> the indices of each partition."""

MIN_EXAMPLES: Final = 8
"""No partition has fewer, as long as there are enough for all."""


class Context(Protocol):
    """The part of a `DeviceContext` that says which part of the data is a device's."""

    @property
    def partition_id(self) -> int: ...
    @property
    def num_partitions(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...


def partition(
    kind: str, labels: Labels, num_partitions: int, *, seed: int = 0, **settings: float
) -> list[Indices]:
    """Cut a data set.

    Args:
        kind: a key of `PARTITIONERS`.
        labels: [n], the class of each example.
        num_partitions: into how many parts, at most n.
        seed: of the cut.
        settings: `alpha` for `dirichlet`, `shards_per_partition` for `shards`.

    Returns:
        The indices of each part, int[n_i], increasing; together 0...n-1.

    Raises:
        UsageError: an unknown kind, or a setting that it does not take or cannot use.
    """
    if kind not in PARTITIONERS:
        raise UsageError(f"there is no partition {kind!r}; there are {', '.join(PARTITIONERS)}")
    if not 1 <= num_partitions <= len(labels):
        raise UsageError(f"{len(labels)} examples cannot be cut into {num_partitions} partitions")
    try:
        parts = PARTITIONERS[kind](labels, num_partitions, np.random.default_rng(seed), **settings)
    except TypeError as error:
        raise UsageError(f"partition {kind!r}: {error}") from None
    return [np.sort(part) for part in _topped_up(parts, min(MIN_EXAMPLES, len(labels) // num_partitions))]


def part_of(context: Context, labels: Labels) -> Indices:
    """The indices of one device's part, as its `[device.data]` says: partition, alpha, shards_per_partition, seed.

    Raises:
        UsageError: as `partition`.
    """
    given = context.settings
    kind = str(given.get("partition", "iid"))
    wanted = {"dirichlet": ("alpha",), "shards": ("shards_per_partition",)}.get(kind, ())
    settings = {name: given[name] for name in wanted if name in given}
    parts = partition(kind, labels, context.num_partitions, seed=context.seed, **settings)
    return parts[context.partition_id]


def iid(labels: Labels, num_partitions: int, rng: np.random.Generator) -> list[Indices]:
    """Every device has the same mixture; sizes differ by one at most."""
    return [
        np.asarray(part) for part in np.array_split(_shuffled(np.arange(len(labels)), rng), num_partitions)
    ]


def dirichlet(
    labels: Labels, num_partitions: int, rng: np.random.Generator, *, alpha: float = 0.3
) -> list[Indices]:
    """Of each class, device i gets the share q_i, q ~ Dirichlet(alpha, ..., alpha)."""
    if not alpha > 0:
        raise UsageError(f"alpha = {alpha} must be above 0; 0.3 is quite uneven, 100 nearly even")
    parts: list[list[Indices]] = [[] for _ in range(num_partitions)]
    for label in np.unique(labels):
        members = _shuffled(np.flatnonzero(labels == label), rng)
        shares = rng.dirichlet(np.full(num_partitions, alpha))  # [num_partitions], sums to 1
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.intp)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def shards(
    labels: Labels, num_partitions: int, rng: np.random.Generator, *, shards_per_partition: int = 2
) -> list[Indices]:
    """Every device has a few runs of the examples sorted by class: with 2, about two classes."""
    count = num_partitions * shards_per_partition
    if shards_per_partition < 1 or count > len(labels):
        raise UsageError(
            f"{len(labels)} examples cannot be cut into {count} shards; lower shards_per_partition"
        )
    by_class = np.argsort(labels, kind="stable")
    pieces = np.array_split(by_class, count)
    dealt = _shuffled(np.arange(count), rng).reshape(num_partitions, shards_per_partition)
    return [np.concatenate([pieces[shard] for shard in hand]) for hand in dealt]


PARTITIONERS: Final[dict[str, Partitioner]] = {"iid": iid, "dirichlet": dirichlet, "shards": shards}
"""Every way to cut. Adding one is one function and one line here."""


def _shuffled(indices: Indices, rng: np.random.Generator) -> Indices:
    return indices[np.argsort(rng.random(len(indices)), kind="stable")]


def _topped_up(parts: Sequence[Indices], least: int) -> list[Indices]:
    """Move examples, one at a time, from the largest part to those that have fewer than `least`."""
    filled = [list(part) for part in parts]
    for poor in filled:
        while len(poor) < least:
            poor.append(max(filled, key=len).pop())
    return [np.array(part, dtype=np.intp) for part in filled]
