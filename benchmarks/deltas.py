"""Real updates to measure codecs on: small networks trained by a federation in this process, without a broker.

Digits, ten devices, SGD with momentum as `fedmq demo` does it, error feedback on the devices, a sparse tracked replica
downward with the same steps of the server. Everything is seeded: the same machine makes the same updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmq.partitioners import partition
from fedmq.tasks.digits import model as digits_mlp
from fedmq.tasks.digits import table
from fedmq_protocol.codecs import CodecSpec, encode, split

Vector = NDArray[np.float32]

DEVICES: Final = 10
SERVER_LR: Final = 1.6
DOWN_DENSITY: Final = 0.03
_LR, _MOMENTUM, _BATCH, _EPOCHS = 0.05, 0.9, 32, 2
_PIXELS: Final = 8  # a side


@dataclass(frozen=True)
class Delta:
    """What one device would send in one round.

    Attributes:
        raw: float32[n], what training changed.
        fed_back: float32[n], that and what earlier updates left behind.
        shapes: of the tensors that make up the vector, in order.
    """

    raw: Vector
    fed_back: Vector
    shapes: tuple[tuple[int, ...], ...]


class _Attention(nn.Module):
    """One block: attention and two layers, each normalised before and added after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same."""
        normal = self.first(x)
        x = x + self.attention(normal, normal, normal, need_weights=False)[0]
        after: torch.Tensor = x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))
        return after


class _Rows(nn.Module):
    """A transformer whose eight tokens are the rows of a digit; 400,010 parameters."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.tokens = nn.Linear(_PIXELS, width)
        self.places = nn.Parameter(0.02 * torch.randn(_PIXELS, width))
        self.blocks = nn.Sequential(_Attention(width), _Attention(width))
        self.scores = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 64] -> scores [batch, 10]."""
        tokens = self.tokens(x.reshape(-1, _PIXELS, _PIXELS)) + self.places
        scores: torch.Tensor = self.scores(self.blocks(tokens).mean(1))
        return scores


def _cnn() -> nn.Module:
    """Two convolutions and two layers, 283,786 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, _PIXELS, _PIXELS)),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def _wide() -> nn.Module:
    """The digits' MLP with 3,136 in each hidden layer: 10,072,842 parameters."""
    return nn.Sequential(
        nn.Linear(64, 3136), nn.ReLU(), nn.Linear(3136, 3136), nn.ReLU(), nn.Linear(3136, 10)
    )


def _tiny() -> nn.Module:
    """So small that a test can train it; 3,036 parameters."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 22), nn.ReLU(), nn.Linear(22, 10))


MODELS: Final = {
    "digits_mlp": digits_mlp,
    "digits_cnn": _cnn,
    "digits_transformer": _Rows,
    "digits_wide": _wide,
    "digits_tiny": _tiny,
}


def deltas(
    name: str,
    split_by: str,
    density: float,
    *,
    rounds: Sequence[int],
    devices: Sequence[int],
    seed: int = 0,
    codec: str = "topk-log4",
) -> Iterator[Delta]:
    """Train a federation and show what some of its devices send in some of its rounds.

    Args:
        name: a key of `MODELS`.
        split_by: `iid`, or `dirichlet` with an alpha of 0.3.
        density: share of the parameters that each update carries.
        rounds: those to show, counted from 1; training ends with the last.
        devices: those to show, counted from 0.
        seed: of the model, the cut and the batches.
        codec: of the updates.

    Yields:
        Round by round, device by device.
    """
    torch.manual_seed(seed)
    model = MODELS[name]()
    parameters = list(model.parameters())
    shapes = tuple(tuple(each.shape) for each in parameters)
    data = table()
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    extra = {"alpha": 0.3} if split_by == "dirichlet" else {}
    parts = partition(split_by, data.train_y, DEVICES, seed=seed, **extra)
    shares = np.array([len(part) for part in parts]) / len(data.train_y)

    replica = _read(parameters)
    private = replica.astype(np.float64)
    residuals = [np.zeros_like(replica) for _ in parts]
    for number in range(1, max(rounds) + 1):
        step = np.zeros_like(private)
        for device, part in enumerate(parts):
            rng = np.random.default_rng([seed, number, device])
            _write(parameters, replica)
            _train(model, x[part], y[part], rng)
            raw = _read(parameters) - replica
            total = raw + residuals[device]
            if number in rounds and device in devices:
                yield Delta(raw, total.copy(), shapes)
            _, sent, residuals[device] = split(total, CodecSpec(codec, density))
            step += shares[device] * sent.to_dense()
        private += SERVER_LR * step
        change = (private - replica).astype(np.float32)
        encode(change, CodecSpec("topk-log4", DOWN_DENSITY))[1].apply_to(replica)


def _train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, rng: np.random.Generator) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, momentum=_MOMENTUM)
    for _ in range(_EPOCHS):
        order = torch.from_numpy(rng.permutation(len(y)))
        for start in range(0, len(y), _BATCH):
            batch = order[start : start + _BATCH]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def _read(parameters: Sequence[torch.Tensor]) -> Vector:
    return np.concatenate([each.detach().numpy().ravel() for each in parameters])


def _write(parameters: Sequence[torch.Tensor], vector: Vector) -> None:
    start = 0
    with torch.no_grad():
        for each in parameters:
            each.copy_(torch.from_numpy(vector[start : start + each.numel()]).view_as(each))
            start += each.numel()
