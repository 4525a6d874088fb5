"""Handwritten digits, 8 x 8 pixels: 1,438 examples on devices, 359 held out; MLP 64-512-512-10, 301,066 parameters."""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from fedmq.tasks.tables import Examples, Table, held_out_table, shuffled
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.task import Task

_WHITE = 16.0
_HIDDEN = 512


@cache
def table() -> Table:
    """All digits, pixels from 0 to 1."""
    x, y = load_digits(return_X_y=True)
    return held_out_table(
        (x / _WHITE).astype(np.float32), y.astype(np.int64), shuffled(len(y), 2024), test_fraction=0.2
    )


def model() -> nn.Module:
    """[batch, 64] -> scores [batch, 10]."""
    return nn.Sequential(
        nn.Linear(64, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 10)
    )


def load_data(context: DeviceContext) -> tuple[Examples, Examples | None]:
    """This device's part."""
    return table().for_device(context)


def load_test_data(_: DeviceContext) -> Examples:
    """The 359 held-out digits."""
    return table().held_out()


task = Task(name="digits", version="1", model=model, load_data=load_data, load_test_data=load_test_data)
