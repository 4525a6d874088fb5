"""Benign or malignant, by 30 measures of cell nuclei: 456 examples on devices, 113 held out; MLP 30-32-2."""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.datasets import load_breast_cancer
from torch import nn

from fedmq.tasks.tables import Examples, Table, held_out_table, shuffled
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.task import Task


@cache
def table() -> Table:
    """All examples, each measure centred and scaled by what the training part has.

    Trying out, all data are here, and this is convenient. A real federation agrees on constants beforehand.
    """
    x, y = load_breast_cancer(return_X_y=True)
    raw = held_out_table(x.astype(np.float32), y.astype(np.int64), shuffled(len(y), 2024), test_fraction=0.2)
    mean, spread = raw.train_x.mean(axis=0), raw.train_x.std(axis=0)  # [30] each
    return Table((raw.train_x - mean) / spread, raw.train_y, (raw.test_x - mean) / spread, raw.test_y)


def model() -> nn.Module:
    """[batch, 30] -> scores [batch, 2]."""
    return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))


def load_data(context: DeviceContext) -> tuple[Examples, Examples | None]:
    """This device's part."""
    return table().for_device(context)


def load_test_data(_: DeviceContext) -> Examples:
    """The 113 held-out examples."""
    return table().held_out()


task = Task(
    name="breast-cancer", version="1", model=model, load_data=load_data, load_test_data=load_test_data
)
