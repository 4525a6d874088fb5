"""The reference for a federated run: the same model, trained in one place on everybody's data."""

from __future__ import annotations

from typing import Any

import torch

from fedmq_edge_agent.trainer import supervised
from fedmq_edge_agent.trainer.blame import blaming
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.dataset import concatenated, examples
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.opened import Opened, central_data, load_device_data, seed_everything
from fedmq_protocol.messages import TrainSettings


def reference(
    opened: Opened,
    settings: TrainSettings,
    epochs: int,
    seed: int,
    evaluate_every: int,
    devices: list[dict[str, Any]] | None,
) -> dict[str, list[float]]:
    """Train from fresh weights on the union of the devices' training data.

    Args:
        opened: the task; its model is left alone.
        settings: batch size, lr, momentum; a task's own `train` gets them with `local_epochs` = `evaluate_every`.
        epochs: how many in all.
        seed: of the first weights and the shuffling.
        evaluate_every: epochs between two evaluations on the central data; 1 or more.
        devices: each device's settings; None: `num_partitions` of the open task's settings says which.

    Returns:
        `loss` and `accuracy`, a value an evaluation; `accuracy` is empty where the task has no such metric.

    Raises:
        TrainerError: `no-data` without central data, or as loading and training do.
    """
    test_data = opened.test_data or central_data(opened.task, opened.context)
    if test_data is None:
        raise TrainerError("no-data", "the task has no load_test_data, so there is nothing to compare on")
    contexts = _contexts(opened, devices)
    data = examples(
        concatenated([load_device_data(opened.task, context)[0] for context in contexts]), "training data"
    )
    seed_everything(seed)
    with blaming("task-error", "making the model"):
        model = opened.task.model()
    central = Opened(opened.task, opened.context, model, opened.schema, data, test_data)
    losses: list[float] = []
    accuracies: list[float] = []

    def measure(epoch: int) -> None:
        if epoch % evaluate_every and epoch != epochs:
            return
        loss, _, metrics = central.evaluate(test_data)
        losses.append(loss)
        if "accuracy" in metrics:
            accuracies.append(metrics["accuracy"])

    if opened.task.train is None:
        generator = torch.Generator().manual_seed(seed)
        whole = settings.model_copy(update={"local_epochs": epochs, "proximal_mu": 0.0})
        with blaming("train-failed", "training"):
            supervised.train(
                model, data, whole, loss=opened.task.loss, generator=generator, after_epoch=measure
            )
    else:
        for done in range(0, epochs, evaluate_every):
            step = min(evaluate_every, epochs - done)
            central.train(settings.model_copy(update={"local_epochs": step}), seed + done)
            measure(done + step)
    return {"loss": losses, "accuracy": accuracies}


def _contexts(opened: Opened, devices: list[dict[str, Any]] | None) -> list[DeviceContext]:
    if devices is not None:
        return [DeviceContext.of(settings) for settings in devices]
    settings = dict(opened.context.settings)
    return [
        DeviceContext.of({**settings, "partition_id": part}) for part in range(opened.context.num_partitions)
    ]
