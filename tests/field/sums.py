"""What the device of the end-to-end proof trains: whether four numbers add up to more than nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedmq import Task


def model() -> nn.Module:
    """[batch, 4] -> scores [batch, 2]."""
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def load_data(device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """200 examples of this device's own."""
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(device.partition_id))
    return x, (x.sum(dim=1) > 0).long()


task = Task(name="sums", model=model, load_data=load_data)
