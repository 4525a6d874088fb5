"""What a nursery does before its first child: imports, first calls, and the data that all children share."""

from __future__ import annotations

import contextlib

import torch

from fedmq_edge_agent.trainer import host, supervised
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.dataset import examples
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.loading import load_task
from fedmq_edge_agent.trainer.opened import central_data
from fedmq_protocol.messages import TrainSettings

OPERATIONS = host.OPERATIONS
"""Importing the host is half of the warming."""


def warm(task: str | None) -> None:
    """Train a toy model, so that what PyTorch sets up at first use is there; then import `task`, once for all.

    Raises:
        TrainerError: the task cannot be imported.
    """
    toy = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    data = examples((torch.zeros(8, 8), torch.zeros(8, dtype=torch.int64)), "toy data")
    supervised.train(toy, data, TrainSettings(batch_size=4), loss=None, generator=torch.Generator())
    supervised.evaluate(toy, data, loss=None)
    if task is not None:
        loaded = load_task(task)
        loaded.model()
        # Tasks that keep what they read (functools.cache) read it here once. What fails, fails again in a child.
        with contextlib.suppress(TrainerError):
            central_data(loaded, DeviceContext())
