"""A synchronous federation in one process, without a broker or time: what travels, and how good the model gets.

Everything that decides either is the project's own: the demo's task, partitions and seeds, the trainer's training and
error feedback, the codecs, the coordinator's weights, accumulator, step and published model. Devices answer in their
order, so the sum of a round's updates may differ in its last bits from a run over a broker. Shared by the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from fedmq.demo.options import DemoOptions
from fedmq_coordinator.core.aggregation import Accumulator
from fedmq_coordinator.core.publication import PublishedModel
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.strategies import Rejection, Submission, make_strategy
from fedmq_edge_agent.trainer.opened import Opened, derived_seed, open_task
from fedmq_edge_agent.trainer.tensors import read_vector, write_vector
from fedmq_edge_agent.trainer.training import Training
from fedmq_protocol.codecs import CodecSpec, decode_update
from fedmq_protocol.messages import UploadSettings

DEVICES = 10


@dataclass(frozen=True)
class Densities:
    """Shares of the parameters that travel in one round."""

    up: float
    down: float


@dataclass(frozen=True)
class Round:
    """What a round came to.

    Attributes:
        number: from 1.
        accuracy: of the published version, on the held-out digits.
        up_bytes: lengths of the updates' payloads, added up.
        down_bytes: length of the delta, as many times as there are devices.
    """

    number: int
    accuracy: float
    up_bytes: int
    down_bytes: int


class _Model(PublishedModel):
    """A published model whose downward density may change from version to version."""

    def set_density(self, density: float) -> None:
        self._down = CodecSpec(self._settings.down, density)


Compression: TypeAlias = Mapping[str, str | float]
"""Compression settings of a run, over the defaults, and `server_lr`."""


def settings_of(
    partition: str, seed: int, compression: Compression | None
) -> tuple[DemoOptions, RunSettings]:
    """The demo's options and run settings; None: float32 both ways."""
    kind = "none" if compression is None else "default"
    options = DemoOptions(partition=partition, seed=seed, devices=DEVICES, compression=kind)
    settings = options.run_settings()
    for name, value in (compression or {}).items():
        settings.setdefault("strategy" if name == "server_lr" else "compression", {})[name] = value
    return options, RunSettings.model_validate(settings)


def federate(
    options: DemoOptions, settings: RunSettings, densities: Callable[[int], Densities] | None = None
) -> Iterator[Round]:
    """Train for as long as the caller asks for rounds.

    Args:
        options: partition and seed.
        settings: the run's.
        densities: of a round, counted from 1; None: as the settings say.
    """
    torch.set_num_threads(1)  # as in a nursery
    devices = [
        open_task(options.task_module, options.data_settings(number), "device", device)
        for number, device in enumerate(options.device_ids)
    ]
    central = open_task(options.task_module, {}, "coordinator")
    schema = central.schema
    model = _Model(schema, settings.compression, _first_weights(central, options.seed))
    model.apply(model.next_version(run="run", at=0.0), with_model=True)
    accumulator, strategy = Accumulator(schema), make_strategy(settings, in_flight=DEVICES)
    residuals: list[np.ndarray[Any, np.dtype[np.float32]] | None] = [None] * len(devices)
    number = 0
    while True:
        number += 1
        compression = settings.compression
        now = densities(number) if densities else Densities(compression.density, compression.down_density)
        upload = UploadSettings(codec=compression.up, density=now.up, first_density=now.up)
        up_bytes = 0
        for place, (device, opened) in enumerate(zip(options.device_ids, devices, strict=True)):
            training = Training(opened, model.replica, settings.train, upload)
            trained = training.train(derived_seed(settings.seed, device, number))
            encoded = training.encode(residuals[place], number - 1)
            residuals[place] = encoded.residual
            weight = strategy.accept(Submission(trained.num_examples, 0))
            assert not isinstance(weight, Rejection)
            accumulator.fold(decode_update(encoded.payload, schema), weight=weight, clip=1.0)
            up_bytes += len(encoded.payload)
        accumulator.step(model.weights, strategy.scale(accumulator.buffer))
        model.set_density(now.down)
        version = model.next_version(run="run", at=0.0)
        model.apply(version, with_model=True)
        assert version.delta is not None
        yield Round(number, _accuracy(central, model), up_bytes, len(version.delta) * DEVICES)


def _first_weights(central: Opened, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the model host makes of a seed."""
    torch.manual_seed(seed)
    return read_vector(central.task.model(), central.schema)


def _accuracy(central: Opened, model: PublishedModel) -> float:
    assert central.test_data is not None
    write_vector(central.model, model.replica, central.schema)
    return central.evaluate(central.test_data)[2]["accuracy"]
