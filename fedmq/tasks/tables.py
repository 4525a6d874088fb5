"""A table of examples, a part of it held out, the rest cut into the parts of devices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmq.partitioners import part_of
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.errors import TrainerError

Features = NDArray[np.float32]
Classes = NDArray[np.int64]
Examples = tuple[Features, Classes]


@dataclass(frozen=True)
class Table:
    """Features float32[n, ...] and classes int64[n], for training and held out."""

    train_x: Features
    train_y: Classes
    test_x: Features
    test_y: Classes

    def for_device(self, context: DeviceContext) -> tuple[Examples, Examples | None]:
        """This device's part, as its settings cut it; `test_fraction` of it for its own evaluation, or none.

        Raises:
            TrainerError: `test_fraction` is no fraction.
        """
        fraction = context.get("test_fraction", 0.0)
        if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
            raise TrainerError(
                "task-error", f"test_fraction = {fraction!r} in [device.data] is not from 0 to below 1"
            )
        mine = part_of(context, self.train_y)
        num_test = int(fraction * len(mine))
        order = shuffled(len(mine), context.seed)
        test, train = mine[order[:num_test]], mine[order[num_test:]]
        held_out = (self.train_x[test], self.train_y[test]) if num_test else None
        return (self.train_x[train], self.train_y[train]), held_out

    def held_out(self) -> Examples:
        """The central test data."""
        return self.test_x, self.test_y


def held_out_table(x: Features, y: Classes, order: NDArray[np.intp], *, test_fraction: float) -> Table:
    """Hold the first examples of an order out."""
    num_test = int(test_fraction * len(y))
    test, train = order[:num_test], order[num_test:]
    return Table(x[train], y[train], x[test], y[test])


def shuffled(count: int, seed: int) -> NDArray[np.intp]:
    """An order of 0...count-1, the same with every version of NumPy."""
    return np.argsort(np.random.default_rng(seed).random(count), kind="stable")
