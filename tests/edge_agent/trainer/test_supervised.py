"""Default training and evaluation, against loops written with PyTorch's own parts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fedmq_edge_agent.trainer import supervised
from fedmq_edge_agent.trainer.dataset import Examples, examples
from fedmq_protocol.messages import TrainSettings


def _net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def _data(count: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])


def _reference(model: nn.Module, settings: TrainSettings) -> None:
    """The loop of any PyTorch tutorial, with FedProx's term in the loss."""
    x, y = _data()
    begun = [weight.detach().clone() for weight in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    generator = torch.Generator().manual_seed(9)
    for _ in range(settings.local_epochs):
        order = torch.randperm(len(x), generator=generator)
        for indices in order.split(settings.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[indices]), y[indices])
            distance = sum(
                ((weight - first) ** 2).sum() for weight, first in zip(model.parameters(), begun, strict=True)
            )
            (loss + settings.proximal_mu / 2 * distance).backward()
            optimizer.step()


def test_sgd_is_pytorchs_to_the_bit() -> None:
    settings = TrainSettings(local_epochs=3, batch_size=16, lr=0.1, momentum=0.9)
    model, other = _net(), _net()
    supervised.train(
        model, examples(_data(), "data"), settings, loss=None, generator=torch.Generator().manual_seed(9)
    )
    _reference(other, settings)
    assert torch.equal(_weights(model), _weights(other))


@pytest.mark.parametrize("mu", [0.1, 2.0])
def test_the_proximal_term_is_that_of_the_loss(mu: float) -> None:
    settings = TrainSettings(local_epochs=3, batch_size=16, lr=0.1, momentum=0.5, proximal_mu=mu)
    model, other = _net(), _net()
    supervised.train(
        model, examples(_data(), "data"), settings, loss=None, generator=torch.Generator().manual_seed(9)
    )
    _reference(other, settings)
    torch.testing.assert_close(_weights(model), _weights(other), rtol=1e-5, atol=1e-6)
    free = _net()
    supervised.train(
        free,
        examples(_data(), "data"),
        settings.model_copy(update={"proximal_mu": 0.0}),
        loss=None,
        generator=torch.Generator().manual_seed(9),
    )
    begun = _weights(_net())
    assert (_weights(model) - begun).norm() < (_weights(free) - begun).norm()


def test_evaluation_is_the_mean_over_all_examples() -> None:
    x, y = _data(1100)  # more than two batches, the last one shorter
    model = _net()
    loss, metrics = supervised.evaluate(model, examples((x, y), "data"), loss=None)
    with torch.no_grad():
        scores = model(x)
    assert loss == pytest.approx(nn.functional.cross_entropy(scores, y).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((scores.argmax(1) == y).float().mean().item())


def test_a_regression_has_a_loss_of_its_own_and_no_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    model = nn.Linear(4, 1)
    data = examples((x.numpy().astype(np.float64), y.numpy()), "data")
    settings = TrainSettings(local_epochs=60, batch_size=16, lr=0.05)
    loss = nn.functional.mse_loss
    reported = supervised.train(model, data, settings, loss=loss, generator=torch.Generator().manual_seed(0))
    measured, metrics = supervised.evaluate(model, data, loss=loss)
    assert measured < 1e-6
    assert reported["loss"] < 1e-5
    assert metrics == {}


def test_frozen_and_unused_weights_stay() -> None:
    model = nn.ModuleDict({"used": nn.Linear(6, 3), "unused": nn.Linear(2, 2), "frozen": nn.Linear(3, 3)})
    model["frozen"].requires_grad_(requires_grad=False)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["frozen"](self.parts["used"](x))  # type: ignore[no-any-return]

    before = copy.deepcopy(model.state_dict())
    supervised.train(
        Net(),
        examples(_data(), "data"),
        TrainSettings(),
        loss=None,
        generator=torch.Generator().manual_seed(0),
    )
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"used.weight", "used.bias"}


@pytest.mark.parametrize("count", [33, 32, 2, 65])
def test_batchnorm_never_meets_a_batch_of_one(count: int) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    metrics = supervised.train(
        model,
        examples(_data(count), "data"),
        TrainSettings(),
        loss=None,
        generator=torch.Generator().manual_seed(0),
    )
    assert np.isfinite(metrics["loss"])
    assert model[1].num_batches_tracked == (2 if count == 65 else 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_learns(dtype: torch.dtype) -> None:
    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
    data = examples((x, (x[:, 0] > 0).long()), "data")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).to(dtype)
    supervised.train(
        model,
        data,
        TrainSettings(local_epochs=15, lr=0.1),
        loss=None,
        generator=torch.Generator().manual_seed(0),
    )
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert supervised.evaluate(model, data, loss=None)[1]["accuracy"] > 0.95


def test_every_epoch_sees_every_example_once() -> None:
    seen: list[int] = []

    def take(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.extend(indices.tolist())
        x, y = _data()
        return x[indices], y[indices]

    supervised.train(
        _net(),
        Examples(raw=None, count=70, take=take),
        TrainSettings(local_epochs=2, batch_size=23),
        loss=None,
        generator=torch.Generator().manual_seed(0),
    )
    assert sorted(seen[:70]) == sorted(seen[70:]) == list(range(70))
    assert seen[:70] != seen[70:]


def test_datasets_and_tensors_train_alike() -> None:
    x, y = _data()

    class Slow(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return x[index], int(y[index])

    trained = []
    for data in ((x, y), TensorDataset(x, y), Slow()):
        model = _net()
        supervised.train(
            model,
            examples(data, "data"),
            TrainSettings(),
            loss=None,
            generator=torch.Generator().manual_seed(2),
        )
        trained.append(_weights(model))
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2])
