"""What is told as a recipe, and what must travel: layers as PyTorch begins them, and weights that only look like it."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import nn

from fedmq_edge_agent.trainer.recipes import DRAWS, MORE_DRAWS, Look, MisfitError, fit, look
from fedmq_protocol.codecs.seeded import Segment


def fitted(make: Callable[[], nn.Module], draws: int = MORE_DRAWS) -> dict[str, Segment]:
    looks: dict[str, list[Look]] = {}
    for draw in range(draws):
        torch.manual_seed(draw)
        for name, value in make().state_dict().items():
            values = value.detach().float().numpy().reshape(-1)
            looks.setdefault(name, []).append(look(values, tuple(value.shape)))
    return {name: fit(each) for name, each in looks.items()}


def width(segment: Segment) -> float:
    """Half the width of an even one, the standard deviation of a normal one."""
    return segment.value * {"constant": 1.0, "uniform": 65535.0, "normal": sqrt(43690)}[segment.kind]


def test_a_linear_layer_is_even_with_the_bound_that_it_was_drawn_with() -> None:
    parts = fitted(lambda: nn.Linear(400, 25))
    assert {name: (part.kind, part.count) for name, part in parts.items()} == {
        "weight": ("uniform", 10_000),
        "bias": ("uniform", 25),
    }
    assert width(parts["weight"]) == pytest.approx(0.05, rel=0.005)
    assert width(parts["bias"]) == pytest.approx(0.05, rel=0.02)


def test_an_embedding_is_normal() -> None:
    part = fitted(lambda: nn.Embedding(300, 40), DRAWS)["weight"]
    assert part.kind == "normal"
    assert width(part) == pytest.approx(1.0, rel=0.02)


def test_constants_are_constants() -> None:
    parts = fitted(lambda: nn.BatchNorm1d(12), DRAWS)
    assert parts["weight"] == Segment.constant(12, 1.0)
    assert parts["bias"] == Segment.constant(12, 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(3, 20, 3),
        lambda: nn.LSTM(10, 20, num_layers=2),
        lambda: nn.TransformerEncoderLayer(64, 4),
        lambda: nn.Linear(1, 1),
        lambda: nn.Linear(70, 30).half(),
        lambda: nn.Linear(70, 30).bfloat16(),
    ],
)
def test_layers_as_pytorch_begins_them_fit(make: Callable[[], nn.Module]) -> None:
    for part in fitted(make).values():
        assert part.kind in {"constant", "uniform", "normal"}


def _loaded() -> nn.Module:
    torch.manual_seed(99)
    return nn.Linear(30, 30)


def _with(change: Callable[[torch.Tensor], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.Linear(60, 60, bias=False)
        with torch.no_grad():
            change(layer.weight)
        return layer

    return make


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_loaded, "does not depend on the seed"),
        (_with(lambda w: w[:9].zero_()), "does not depend on the seed"),
        (_with(lambda w: w[0].zero_()), "does not depend on the seed|always zero"),
        (lambda: nn.Embedding(3000, 20, padding_idx=0), "always zero"),
        (_with(nn.init.orthogonal_), "rows or columns"),
        (_with(lambda w: w[:20].mul_(1.5)), "rows or columns|neither"),
        (_with(lambda w: w[:, :20].mul_(1.5)), "rows or columns|neither"),
        (_with(lambda w: w.add_(0.02)), "zero"),
        (_with(lambda w: w.exponential_().mul_(torch.sign(torch.randn_like(w)))), "neither"),
        (_with(lambda w: w.bernoulli_().mul_(2).sub_(1)), "neither|does not depend"),
    ],
)
@pytest.mark.parametrize("draws", [DRAWS, MORE_DRAWS])
def test_what_only_looks_like_it_must_travel(make: Callable[[], nn.Module], why: str, draws: int) -> None:
    with pytest.raises(MisfitError, match=why):
        fitted(make, draws)


def test_fits_are_not_a_matter_of_luck() -> None:
    """Two hundred small layers, each drawn from other seeds: none is refused."""

    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(16, 10) for _ in range(100)))

    assert len(fitted(make, DRAWS)) == 200
