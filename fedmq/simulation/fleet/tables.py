"""scikit-learn's small tables, cut for a fleet that may be larger than they are."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.fleet.learners import Data

TABLES: Final = ("digits", "iris", "breast_cancer")
_HELD_OUT: Final = 0.2


def load(name: str, seed: int) -> tuple[Data, Data, int]:
    """For training and held out, every feature with mean 0 and variance 1; and the number of classes."""
    from sklearn import datasets

    table: Any = getattr(datasets, f"load_{name}")()
    x, y = table.data.astype(np.float64), table.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = np.split(order, [int(_HELD_OUT * len(y))])
    mean, spread = x[train].mean(axis=0), x[train].std(axis=0)
    x = ((x - mean) / np.where(spread == 0, 1, spread)).astype(np.float32)
    return Data(x[train], y[train]), Data(x[test], y[test]), int(y.max()) + 1


def deal(
    data: Data,
    devices: list[str],
    *,
    examples: int,
    alpha: float | None,
    classes: int,
    rng: np.random.Generator,
) -> dict[str, Data]:
    """Each device's examples, drawn with replacement.

    Args:
        data: to draw from.
        devices: their ids.
        examples: each gets.
        alpha: its share of classes is drawn from Dirichlet(alpha); None: that of the data.
        classes: how many there are.
        rng: chance.
    """
    by_class: list[NDArray[np.intp]] = [np.flatnonzero(data.y == label) for label in range(classes)]
    usual = np.bincount(data.y, minlength=classes) / len(data.y)
    parts = {}
    for device in devices:
        share = usual if alpha is None else rng.dirichlet(np.full(classes, alpha))
        counts = rng.multinomial(examples, share)
        chosen = np.concatenate(
            [rng.choice(places, count) for places, count in zip(by_class, counts, strict=True) if count]
        )
        parts[device] = Data(data.x[chosen], data.y[chosen])
    return parts
