"""A model of any size and a training that costs next to nothing: what is measured beside it is the system's.

`LARGE_MODEL_PARAMETERS` says how many parameters, 100 million where it is not set: 400 MB of float32 in four square
layers. Training adds a seeded change, a slice at a time: no gradients and no optimizer's state, which would be as
large as the model again and are a task's own matter.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import nn

from fedmq import DeviceContext, Task, TrainSettings

LAYERS = 4
SLICE = 1 << 20
VARIABLE = "LARGE_MODEL_PARAMETERS"
"""Environment variable with the number of parameters, which the layers come near to."""


class Large(nn.Module):
    """Four square layers in a row."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        width = max(8, math.isqrt(parameters // LAYERS))
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[batch, width] -> float32[batch, width]."""
        out: torch.Tensor = self.layers(x)
        return out


def model() -> Large:
    """The model, of the size that the environment says."""
    return Large(int(os.environ.get(VARIABLE, "100_000_000")))


def load_data(_: DeviceContext) -> tuple[torch.Tensor, torch.Tensor]:
    """A handful of examples, for form's sake."""
    return torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64)


def train(model: Large, _: Any, settings: TrainSettings, __: DeviceContext) -> dict[str, float]:  # noqa: ANN401 - as any task's
    """Add `lr` times a heavy-tailed change that follows from the seed, in place and slice by slice."""
    pattern = torch.randn(SLICE).pow_(3).mul_(settings.lr)
    with torch.no_grad():
        for weights in model.parameters():
            for part in weights.view(-1).split(SLICE):
                part.add_(pattern[: len(part)], alpha=float(torch.rand(())))
    return {"num_examples": 8}


def evaluate(model: Large, _: Any) -> tuple[float, dict[str, float]]:  # noqa: ANN401 - as any task's
    """The mean square of the first layer's first row, as good a number as any."""
    with torch.no_grad():
        first = next(model.parameters())[0]
        return float(first.square().mean()), {}


task = Task(name="large", model=model, load_data=load_data, train=train, evaluate=evaluate)
