"""A synchronous federation in one process, without a broker or time: what travels, and how good the model gets.

What decides either is the project's own: the demo's task, partitions and seeds, the trainer's training and bound on the
residual, the codecs with error feedback, the coordinator's weights, accumulator and step. A run starts from a seed.
Devices answer in their order, so the sum of a round's updates may differ in its last bits from a run over a broker.
Shared by the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fedmq.demo.options import DemoOptions
from fedmq_coordinator.core.aggregation import Accumulator
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.strategies import Rejection, Submission, make_strategy
from fedmq_edge_agent.trainer.beginning import first_snapshot
from fedmq_edge_agent.trainer.feedback import cap_factor
from fedmq_edge_agent.trainer.opened import Opened, open_task
from fedmq_edge_agent.trainer.paged import Paged
from fedmq_edge_agent.trainer.seeds import derived_seed
from fedmq_edge_agent.trainer.tensors import read_vector, write_vector
from fedmq_protocol.codecs import (
    CodecSpec,
    Dense,
    apply_delta,
    decode_snapshot,
    decode_update,
    encode_delta,
    encode_snapshot,
    encode_update,
    requantise,
)
from fedmq_protocol.codecs.topk import select
from fedmq_protocol.schema import TensorSchema

Vector = NDArray[np.float32]

DEVICES = 10


@dataclass(frozen=True)
class Densities:
    """Shares of the parameters that travel in one round; `per_tensor`: upward of each tensor, not of all together."""

    up: float
    down: float
    per_tensor: bool = False


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
    schema, compression = central.schema, settings.compression
    replica = first_weights(central, options.seed)
    weights = replica.copy()
    accumulator, strategy = Accumulator(schema), make_strategy(settings, in_flight=DEVICES)
    residuals: list[Vector | None] = [None] * len(devices)
    snapshot_bytes, chain_bytes = len(encode_snapshot(weights, schema, compression.snapshot)[0]), 0
    for number in count(1):
        now = densities(number) if densities else Densities(compression.density, compression.down_density)
        up = CodecSpec(compression.up, now.up, compression.offered_coders)
        up_bytes = 0
        for place, (device, opened) in enumerate(zip(options.device_ids, devices, strict=True)):
            write_vector(opened.model, Paged(replica), schema)
            examples, _ = opened.train(settings.train, derived_seed(settings.seed, device, number))
            delta = read_vector(opened.model, schema) - replica
            residual = _capped(residuals[place], delta, compression.residual_cap)
            payload, residuals[place] = send(delta, residual, schema, up, per_tensor=now.per_tensor)
            weight = strategy.accept(Submission(examples, 0))
            assert not isinstance(weight, Rejection)
            accumulator.fold(decode_update(payload, schema), weight=weight, clip=1.0)
            up_bytes += len(payload)
        accumulator.step(weights, strategy.scale(accumulator.buffer))
        change = encode_delta(weights, replica, schema, CodecSpec(compression.down, now.down))
        apply_delta(replica, change, schema)
        chain_bytes += len(change)
        if chain_bytes >= snapshot_bytes:
            replica, chain_bytes = requantise(replica, schema, compression.snapshot), 0
        yield Round(number, _accuracy(central, replica), up_bytes, len(change) * DEVICES)


def _capped(residual: Vector | None, delta: Vector, cap: float) -> Vector | None:
    """The residual, scaled down where it is too long."""
    if residual is None:
        return None
    factor, _ = cap_factor(Dense(residual).norm(), Dense(delta[: len(residual)]).norm(), cap)
    return residual if factor == 1 else residual * np.float32(factor)


def send(
    delta: Vector, residual: Vector | None, schema: TensorSchema, spec: CodecSpec, *, per_tensor: bool
) -> tuple[bytes, Vector]:
    """An update, and what waits; per tensor for models of parameters alone."""
    if not per_tensor:
        return encode_update(delta, residual, schema, spec)
    total = delta if residual is None else delta + residual
    waiting, start = total.copy(), 0
    for entry in schema.vector_entries():
        waiting[start + select(total[start : start + entry.size], spec.kept(entry.size))] = 0
        start += entry.size
    payload, left = encode_update(total - waiting, None, schema, spec)
    return payload, left + waiting


def first_weights(central: Opened, seed: int) -> Vector:
    """What a run of the demo starts from: float32[size], drawn from a seed by everybody."""
    return decode_snapshot(first_snapshot(central, seed, "int8"), central.schema)


def _accuracy(central: Opened, replica: Vector) -> float:
    assert central.test_data is not None
    write_vector(central.model, Paged(replica), central.schema)
    return central.evaluate(central.test_data)[2]["accuracy"]
