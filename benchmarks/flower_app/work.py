"""The work, without Flower: the demo's model, a device's training and the central evaluation, in plain PyTorch.

The data, their partitions and the first weights come from a file that vs_flower.py writes, so that both sides do the
same. Shuffles are seeded as the demo's trainers seed theirs.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

BATCH, EPOCHS, LR, MOMENTUM = 32, 2, 0.05, 0.9
_SEED_BYTES = 8


def make_model() -> nn.Module:
    """[batch, 64] -> scores [batch, 10]; 301,066 parameters."""
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


class Data:
    """What vs_flower.py wrote.

    Args:
        path: the .npz file.
    """

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files}
        self.seed = int(self._arrays["seed"])
        torch.set_num_threads(1)

    def first_weights(self) -> list[np.ndarray]:
        """Arrays in the state_dict's order."""
        names = make_model().state_dict()
        return [self._arrays[f"first_{name}"] for name in names]

    def accuracy(self, weights: list[np.ndarray]) -> float:
        """On the held-out digits."""
        model = _with(weights)
        model.eval()
        with torch.inference_mode():
            scores = model(torch.from_numpy(self._arrays["test_x"]))
        return float((scores.argmax(dim=1) == torch.from_numpy(self._arrays["test_y"])).float().mean())

    def train(self, weights: list[np.ndarray], device: int, number: int) -> tuple[list[np.ndarray], int]:
        """What a device makes of `weights` in round `number`, counted from 1, and on how many examples."""
        x = torch.from_numpy(self._arrays[f"x_{device}"])
        y = torch.from_numpy(self._arrays[f"y_{device}"])
        model = _with(weights)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        digest = hashlib.sha256(f"{self.seed}/{number}/dev-{device + 1}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:_SEED_BYTES], "big") >> 1)
        model.train()
        for _ in range(EPOCHS):
            for batch in _batches(len(y), generator):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
        return [value.numpy() for value in model.state_dict().values()], len(y)


def note(journal: str, number: int, accuracy: float) -> None:
    """Add a line for a round to the journal that vs_flower.py reads."""
    with Path(journal).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"round": number, "accuracy": accuracy, "at": time.time()}) + "\n")


def _with(weights: list[np.ndarray]) -> nn.Module:
    model = make_model()
    names = model.state_dict().keys()
    state = {name: torch.tensor(value) for name, value in zip(names, weights, strict=True)}
    model.load_state_dict(state)
    return model


def _batches(count: int, generator: torch.Generator) -> list[torch.Tensor]:
    order = torch.randperm(count, generator=generator)
    sizes = [BATCH] * (count // BATCH)
    rest = count % BATCH
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return list(order.split(sizes))
