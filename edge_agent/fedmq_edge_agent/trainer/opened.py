"""A task that is loaded, with its model and its data: the user's functions where they gave some, ours where not."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fedmq_edge_agent.trainer import paged, supervised
from fedmq_edge_agent.trainer.blame import blaming
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.dataset import Examples, examples, split_train_test
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.loading import load_task
from fedmq_edge_agent.trainer.task import Task
from fedmq_edge_agent.trainer.tensors import let_go, schema_of
from fedmq_protocol.limits import MAX_COUNTER, MAX_METRICS
from fedmq_protocol.messages import TrainSettings
from fedmq_protocol.schema import TensorSchema

Role = Literal["device", "coordinator"]
Metrics = dict[str, float]

_NUMPY_SEEDS = 2**32
_MAX_METRIC_NAME = 64
_FLOWER_EVALUATION = 3  # (loss, num_examples, metrics), as Flower's clients return it


@dataclass(frozen=True)
class Opened:
    """What `open` made of a task.

    Attributes:
        task: the user's task.
        context: of this device, or of the coordinator.
        model: the one instance that is trained and evaluated; its local entries live here.
        schema: of the model.
        train_data: this device's; None at the coordinator.
        test_data: this device's held-out data, or the coordinator's central ones; None where there are none.
    """

    task: Task
    context: DeviceContext
    model: torch.nn.Module
    schema: TensorSchema
    train_data: Examples | None
    test_data: Examples | None

    def train(self, settings: TrainSettings, seed: int) -> tuple[int, Metrics]:
        """Train the model in place.

        Args:
            settings: the run's.
            seed: 64 bits; all chance in the training follows from it.

        Returns:
            On how many examples, and the metrics.

        Raises:
            TrainerError: `no-data`, or `train-failed` with the line of the user's code.
        """
        if self.train_data is None or self.train_data.count == 0:
            raise TrainerError("no-data", "this device has no training data")
        seed_everything(seed)
        data = self.train_data
        with blaming("train-failed", "training"):
            if self.task.train is None:
                generator = torch.Generator().manual_seed(seed)
                returned: object = supervised.train(
                    self.model, data, settings, loss=self.task.loss, generator=generator
                )
            else:
                self.model.train()
                returned = self.task.train(self.model, data.raw, settings, self.context)
        self.model.zero_grad(set_to_none=True)
        return _num_examples_and_metrics(returned, data.count, settings)

    def let_go(self) -> None:
        """Let go of a large model's memory until `write_vector` fills it again; small ones stay as they are."""
        if self.schema.size >= paged.LARGE:
            let_go(self.model, self.schema)

    def evaluate(self, data: Examples) -> tuple[float, int, Metrics]:
        """Loss, number of examples and metrics of the model on `data`.

        Raises:
            TrainerError: `evaluate-failed`, with the line of the user's code, or since the loss is not finite.
        """
        with blaming("evaluate-failed", "evaluating"):
            if self.task.evaluate is None:
                loss, metrics = supervised.evaluate(self.model, data, loss=self.task.loss)
                count = data.count
            else:
                self.model.eval()
                with torch.no_grad():
                    returned = self.task.evaluate(self.model, data.raw)
                loss, count, metrics = _evaluation(returned, data.count)
        if not math.isfinite(loss):
            raise TrainerError(
                "evaluate-failed", f"evaluating: the loss is {loss}; the model diverged, or the data hold NaN"
            )
        return loss, count, metrics


def open_task(where: str, settings: Mapping[str, Any], role: Role, device: str = "") -> Opened:
    """Load a task, make its model and load the data of this side.

    Raises:
        TrainerError: `task-error` or `no-data`.
    """
    task = load_task(where)
    context = DeviceContext.of(settings, device=device)
    with blaming("task-error", "making the model"):
        model = task.model()
    if not isinstance(model, torch.nn.Module):
        raise TrainerError(
            "task-error", f"{where}: model() returned a {type(model).__name__}, not a torch.nn.Module"
        )
    schema = schema_of(model)
    train_data, test_data = (
        _device_data(task, context) if role == "device" else (None, central_data(task, context))
    )
    return Opened(task, context, model, schema, train_data, test_data)


def central_data(task: Task, context: DeviceContext) -> Examples | None:
    """The task's central held-out data; None where it has none.

    Raises:
        TrainerError: `task-error` or `no-data`.
    """
    if task.load_test_data is None:
        return None
    with blaming(
        "task-error", "loading the central test data", no_data=(FileNotFoundError, NotADirectoryError)
    ):
        loaded = task.load_test_data(context)
    data = examples(loaded, "central test data")
    if data.count == 0:
        raise TrainerError("no-data", "load_test_data returned no examples")
    return data


def load_device_data(task: Task, context: DeviceContext) -> tuple[Any, Any | None]:
    """What `load_data` returned for one device: train, and test or None.

    Raises:
        TrainerError: `task-error` or `no-data`.
    """
    with blaming("task-error", "loading the data", no_data=(FileNotFoundError, NotADirectoryError)):
        loaded = task.load_data(context)
    return split_train_test(loaded)


def seed_everything(seed: int) -> None:
    """Seed the global generators that layers (dropout) and users' code draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % _NUMPY_SEEDS)  # noqa: NPY002 - users' code draws from it


def _device_data(task: Task, context: DeviceContext) -> tuple[Examples, Examples | None]:
    train, test = load_device_data(task, context)
    train_data = examples(train, "training data")
    if train_data.count == 0:
        raise TrainerError("no-data", "load_data returned no examples; check [device.data]")
    test_data = None if test is None else examples(test, "test data")
    return train_data, test_data if test_data is not None and test_data.count else None


def _num_examples_and_metrics(returned: object, count: int, settings: TrainSettings) -> tuple[int, Metrics]:
    if returned is None:
        return count, {}
    if not isinstance(returned, Mapping):
        detail = f"train returned a {type(returned).__name__}; return a dict of metrics, or nothing"
        raise TrainerError("train-failed", detail)
    metrics = _numbers(returned, "train-failed")
    for name, value in metrics.items():
        if not math.isfinite(value):
            hint = f"; a smaller lr than {settings.lr:g} may help" if name == "loss" else ""
            raise TrainerError("train-failed", f"training: the metric {name} is {value}{hint}")
    num_examples = int(metrics.pop("num_examples", count))
    if not 1 <= num_examples <= MAX_COUNTER:
        raise TrainerError("no-data", f"train says that it trained on {num_examples} examples")
    return num_examples, metrics


def _evaluation(returned: object, count: int) -> tuple[float, int, Metrics]:
    match returned:
        case (loss, metrics) if isinstance(metrics, Mapping):
            pass
        case (loss, int(count), metrics) if isinstance(metrics, Mapping):
            pass
        case _:
            raise TrainerError(
                "evaluate-failed", "evaluate returns (loss, metrics), metrics a dict of numbers"
            )
    numbers = _numbers({"loss": loss, **metrics}, "evaluate-failed")
    value = numbers.pop("loss")
    return value, count, {name: number for name, number in numbers.items() if math.isfinite(number)}


def _numbers(metrics: Mapping[Any, Any], code: str) -> Metrics:
    if len(metrics) > MAX_METRICS:
        raise TrainerError(code, f"{len(metrics)} metrics; at most {MAX_METRICS} travel")
    numbers: Metrics = {}
    for name, value in metrics.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TrainerError(code, f"the metric {name} is {type(value).__name__}, not a number") from None
        if not 0 < len(str(name)) <= _MAX_METRIC_NAME:
            raise TrainerError(
                code, f"a metric's name has 1 to {_MAX_METRIC_NAME} characters, not {name!r:.80}"
            )
    return numbers
