"""How a device trains and evaluates where the task does not say: the usual supervised case.

SGD with momentum (as in PyTorch: v = momentum v + g, w = w - lr v), fresh each time, over shuffled batches. With
`proximal_mu` each gradient gains mu (w - w_v), which is the gradient of FedProx's (mu / 2) |w - w_v|^2, w_v being the
weights that training began with (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", eq. 2).

The step is spelled out instead of taken from `torch.optim`: the first optimizer of a process imports a second's worth
of compiler, which a device would pay in time and memory after every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fedmq_edge_agent.trainer.dataset import Examples
from fedmq_edge_agent.trainer.task import Loss
from fedmq_protocol.messages import TrainSettings

Metrics = dict[str, float]

_EVALUATION_BATCH = 512
_CLASS_SCORES_DIMS = 2  # [batch, classes]


def train(
    model: torch.nn.Module,
    data: Examples,
    settings: TrainSettings,
    *,
    loss: Loss | None,
    generator: torch.Generator,
    after_epoch: Callable[[int], None] | None = None,
) -> Metrics:
    """Train `model` in place.

    Args:
        model: begins as the model version w_v.
        data: at least one example.
        settings: epochs, batch size, lr, momentum, proximal_mu.
        loss: mean loss of a batch; None: cross-entropy.
        generator: shuffles the examples.
        after_epoch: called with the number of finished epochs.

    Returns:
        `loss`: the mean over the last epoch, while it trained, without the proximal term.
    """
    criterion = loss or cross_entropy
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    begun = [weight.detach().clone() for weight in weights] if settings.proximal_mu > 0 else []
    velocity = [torch.zeros_like(weight) for weight in weights]
    dtype = weights[0].dtype
    model.train()
    mean = 0.0
    for epoch in range(settings.local_epochs):
        total = 0.0
        for indices in _batches(data.count, settings.batch_size, generator):
            x, y = data.take(indices)
            value = criterion(_widened(model(_as(x, dtype))), y)
            value.backward()
            with torch.no_grad():
                for place, weight in enumerate(weights):
                    if weight.grad is None:
                        continue
                    if begun:
                        weight.grad.add_(weight - begun[place], alpha=settings.proximal_mu)
                    velocity[place].mul_(settings.momentum).add_(weight.grad)
                    weight.add_(velocity[place], alpha=-settings.lr)
                    weight.grad = None
            total += float(value.detach()) * len(indices)
        mean = total / data.count
        if after_epoch is not None:
            after_epoch(epoch + 1)
            model.train()
    return {"loss": mean}


def evaluate(model: torch.nn.Module, data: Examples, *, loss: Loss | None) -> tuple[float, Metrics]:
    """Measure `model` on all of `data`.

    Returns:
        The mean loss, and `accuracy` where the model gives scores [batch, classes] and targets are class numbers.
    """
    criterion = loss or cross_entropy
    dtype = next((weight.dtype for weight in model.parameters()), torch.get_default_dtype())
    total, right, counted = 0.0, 0, 0
    model.eval()
    with torch.inference_mode():
        for indices in torch.arange(data.count).split(_EVALUATION_BATCH):
            x, y = data.take(indices)
            scores = _widened(model(_as(x, dtype)))
            total += float(criterion(scores, y)) * len(indices)
            if scores.ndim == _CLASS_SCORES_DIMS and y.ndim == 1 and not y.is_floating_point():
                right += int((scores.argmax(dim=1) == y).sum())
                counted += len(indices)
    metrics = {"accuracy": right / counted} if counted == data.count else {}
    return total / data.count, metrics


def cross_entropy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of scores [batch, classes] against class numbers [batch]."""
    return torch.nn.functional.cross_entropy(scores, targets)


def _batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled indices int64[batch]; a last batch of one joins the one before it, since BatchNorm cannot take one."""
    order = torch.randperm(count, generator=generator)
    sizes = [batch_size] * (count // batch_size)
    rest = count % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    yield from order.split(sizes)


def _as(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inputs in the precision of the weights."""
    return x.to(dtype) if x.is_floating_point() else x


def _widened(scores: torch.Tensor) -> torch.Tensor:
    """Losses are taken in float32 at least: in half precision they overflow."""
    return scores.float() if scores.dtype in {torch.float16, torch.bfloat16} else scores
