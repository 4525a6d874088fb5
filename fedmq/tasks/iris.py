"""Iris flowers by four measures: 120 examples on devices, 30 held out; MLP 4-32-32-3."""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.datasets import load_iris
from torch import nn

from fedmq.tasks.tables import Examples, Table, held_out_table
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.task import Task

_TYPICAL_CM = np.array([5.8, 3.1, 3.8, 1.2])  # known beforehand, so that no device has to tell its own mean
_SPREAD_CM = np.array([0.8, 0.4, 1.8, 0.8])


@cache
def table() -> Table:
    """All flowers, measures centred and scaled."""
    x, y = load_iris(return_X_y=True)
    scaled = ((x - _TYPICAL_CM) / _SPREAD_CM).astype(np.float32)
    order = np.random.RandomState(42).permutation(len(y))
    return held_out_table(scaled, y.astype(np.int64), order, test_fraction=0.2)


def model() -> nn.Module:
    """[batch, 4] -> scores [batch, 3]."""
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def load_data(context: DeviceContext) -> tuple[Examples, Examples | None]:
    """This device's part."""
    return table().for_device(context)


def load_test_data(_: DeviceContext) -> Examples:
    """The 30 held-out flowers."""
    return table().held_out()


task = Task(name="iris", version="1", model=model, load_data=load_data, load_test_data=load_test_data)
