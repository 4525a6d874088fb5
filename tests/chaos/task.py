"""The task that the devices of a chaos run train: changes drawn by lot, and a ledger of them beside our code's beliefs.

Each training draws a ticket, changes the weights by whole multiples of 2^-10 that follow from the ticket alone, and
notes the ticket with the hash of the weights that it found. The ticket travels as a metric of the update. So whoever
has the ledger can say of every update what was trained, and on which bits, without asking the agent.

With `wide` all weights change, and an update takes several packets; without, three hundred do, and it takes one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.task import Task
from fedmq_protocol.messages import TrainSettings

NUM_PARAMETERS = 4_000
NUM_BUFFERS = 4
GRID = 2.0**-10
_NARROW = 300
_EXAMPLES = 8

Vector = NDArray[np.float32]


def drawn(ticket: int, *, wide: bool) -> Vector:
    """What a ticket stands for, float32[NUM_PARAMETERS + NUM_BUFFERS]."""
    rng = np.random.default_rng(ticket)
    change = np.zeros(NUM_PARAMETERS + NUM_BUFFERS, np.float32)
    chosen = (
        np.arange(len(change)) if wide else rng.choice(NUM_PARAMETERS, _NARROW, replace=False, shuffle=False)
    )
    change[chosen] = rng.integers(-1024, 1025, len(chosen)) * GRID
    return change


class Weights(nn.Module):
    """A vector to be trained and one of statistics, both zero at first."""

    statistics: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_PARAMETERS))
        self.register_buffer("statistics", torch.zeros(NUM_BUFFERS))


def load_data(_: DeviceContext) -> tuple[torch.Tensor, torch.Tensor]:
    """Nobody looks at them: how many they are is an update's weight."""
    return torch.zeros(_EXAMPLES, 1), torch.zeros(_EXAMPLES)


def train(
    model: Weights, _data: object, _settings: TrainSettings, context: DeviceContext
) -> Mapping[str, float]:
    """Draw, note, take a while, change."""
    found = np.concatenate([model.weight.detach().numpy(), model.statistics.numpy()])
    ticket = secrets.randbits(48)
    line = f"{ticket} {hashlib.sha256(found.tobytes()).hexdigest()}\n"
    ledger = os.open(Path(context["ledger"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(ledger, line.encode())
    finally:
        os.close(ledger)
    time.sleep(secrets.randbelow(1000) / 1000 * float(context["train_s"]))
    change = torch.from_numpy(drawn(ticket, wide=bool(context["wide"])))
    with torch.no_grad():
        model.weight.add_(change[:NUM_PARAMETERS])
        model.statistics.add_(change[NUM_PARAMETERS:])
    return {"ticket": float(ticket)}


def evaluate(_model: nn.Module, _data: object) -> tuple[float, Mapping[str, float]]:
    """There is nothing to measure."""
    return 0.0, {}


task = Task(name="chaos", version="1", model=Weights, load_data=load_data, train=train, evaluate=evaluate)
