"""What a user brings: a model, a way to load this device's data, and, where the usual will not do, how to train.

    from fedmq import Task

    def load_data(context): ...          # this device's part; returns train data, or (train, test)

    task = Task(name="digits", version="1", model=Net, load_data=load_data)

Data are a `torch.utils.data.Dataset` with a length, a `DataLoader` over one, or a pair `(X, y)` of tensors or NumPy
arrays with the examples along the first axis. `train` and `evaluate` get them exactly as `load_data` returned them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_protocol.messages import TrainSettings

Data = Any
"""A Dataset, a DataLoader or a pair (X, y); see the module's docstring."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(output of the model, targets) -> mean loss, a scalar tensor."""

MAX_NAME_CHARS = 128


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run trains. Devices and the coordinator each load it from their own disk; it never travels.

    Attributes:
        name: the task's name, the same on all devices.
        version: grows when a change makes updates of old and new devices incomparable (other data, another loss).
        model: makes the model, without arguments: a class or a function.
        load_data: makes this device's data from its settings: `train`, or `(train, test)`.
        load_test_data: makes central held-out data, for the coordinator, which calls it with a context of its own.
        train: `train(model, data, settings, context)` changes `model` in place and returns metrics, or None. A metric
            `num_examples` says on how many examples it trained where that is not the number of `data`. None: SGD with
            momentum, fresh each time, with `loss`, and FedProx's proximal term where the run asks for it.
        evaluate: `evaluate(model, data)` returns `(loss, metrics)`. None: mean `loss`, and the accuracy where targets
            are class numbers.
        loss: for the default `train` and `evaluate`. None: cross-entropy.

    Raises:
        TypeError, ValueError: a field is not what it should be; the text says which.
    """

    name: str
    version: str = "1"
    model: Callable[[], torch.nn.Module]
    load_data: Callable[[DeviceContext], Data]
    load_test_data: Callable[[DeviceContext], Data] | None = None
    train: Callable[[Any, Data, TrainSettings, DeviceContext], Mapping[str, float] | None] | None = None
    evaluate: Callable[[Any, Data], tuple[float, Mapping[str, float]]] | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        for field in ("name", "version"):
            text = getattr(self, field)
            if not isinstance(text, str):
                raise TypeError(f"a task's {field} is text, not {text!r}")
            if not 0 < len(text) <= MAX_NAME_CHARS:
                raise ValueError(f"a task's {field} has 1 to {MAX_NAME_CHARS} characters")
        for field in ("model", "load_data"):
            if not callable(getattr(self, field)):
                raise TypeError(f"a task's {field} is a function, not {getattr(self, field)!r}")
        for field in ("load_test_data", "train", "evaluate", "loss"):
            if getattr(self, field) is not None and not callable(getattr(self, field)):
                raise TypeError(f"a task's {field} is a function or None, not {getattr(self, field)!r}")
