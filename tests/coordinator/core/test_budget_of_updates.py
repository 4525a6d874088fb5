"""Settings of what an update carries: a share of each tensor, a budget of bytes, and what is taken of it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from fedmq_coordinator.core.intake import max_kept
from fedmq_coordinator.core.settings import CompressionSettings
from fedmq_coordinator.core.strategies import make_strategy
from fedmq_coordinator.core.strategies.fedavg import FedAvg
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import CodecSpec, encode_update, least_update_bytes
from fedmq_protocol.messages import Update, UpdateHeader
from fedmq_protocol.schema import TensorEntry, TensorSchema
from tests.coordinator.core.world import SCHEMA, World, settings


def test_what_devices_are_told() -> None:
    world = World()
    world.join("a")
    world.join("b")
    world.start_run(settings(compression={"update_bytes": 300, "per_tensor": True}))
    upload = world.announcement().upload
    assert (upload.update_bytes, upload.per_tensor) == (300, True)
    assert CompressionSettings().upload.update_bytes is None


@pytest.mark.parametrize("budget", [120, 160, 220])
def test_an_update_that_fills_its_budget_is_taken(budget: int) -> None:
    """Whatever density came of it: more elements than the settings' density says, here."""
    world = World()
    world.join("a")
    world.join("b")
    world.start_run(settings(compression={"update_bytes": budget, "density": 0.01}))
    delta = np.random.default_rng(1).normal(size=SCHEMA.size).astype(np.float32)
    data, _ = encode_update(delta, None, SCHEMA, CodecSpec("topk-sign", max_bytes=budget))
    assert 0.6 * budget < len(data) <= budget
    run = world.core.runs["r1"]
    assert max_kept(run) == min(SCHEMA.num_parameters, 16 * budget)
    header = UpdateHeader(
        run="r1",
        counter=0,
        lease=run.cohort_lease,
        base_version=0,
        schema_hash=SCHEMA.hash,
        num_examples=10,
        payload=blob_ref(data),
    )
    receipt = world.receipt(world.say(world.devices["a"], "update", Update(header=header, data=data)))
    assert receipt.outcome == "accepted", receipt
    assert header.payload.sha256 == hashlib.sha256(data).digest()


def test_the_most_that_a_share_of_each_tensor_holds_is_taken() -> None:
    entries = tuple(
        TensorEntry(name=str(size), shape=(size,), dtype="float32", role="parameter") for size in (900, 30, 1)
    )
    schema = TensorSchema(entries=entries)
    whole, each = CompressionSettings(density=0.01), CompressionSettings(density=0.01, per_tensor=True)
    assert whole.up_spec(schema).kept(931) == 10
    assert each.up_spec(schema).kept(931) == 9 + 1 + 1
    annealed = CompressionSettings(density=0.01, first_density=0.1, anneal_updates=5, per_tensor=True)
    assert annealed.up_spec(schema).kept(931) == 90 + 3 + 1


@pytest.mark.parametrize(
    ("compression", "says"),
    [
        ({"update_bytes": 0}, "greater than or equal to 1"),
        ({"update_bytes": 1000, "up": "int8"}, "sparse codec"),
        ({"down": "randk-int8"}, "is for updates"),
        ({"snapshot": "randk-int8"}, "every parameter"),
    ],
)
def test_nonsense_is_refused(compression: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(compression=compression)


def test_a_long_step_is_for_updates_that_will_be_sparse() -> None:
    """What makes up for error feedback's delay goes by the density that a budget stands for."""
    for budget, expected in ((10, 1.6), (400, 1.0)):
        world = World()
        world.join("a")
        world.join("b")
        run = world.start_run(settings(compression={"update_bytes": budget}))
        strategy = make_strategy(run.expected_settings, in_flight=2)
        assert isinstance(strategy, FedAvg)
        assert strategy.server_lr == expected
        assert run.settings.compression.density == 0.02, "as it was asked for"


def test_the_least_budget_is_enough_for_whatever_is_to_be_sent() -> None:
    spec = CodecSpec("topk-log4", coders=())
    least = least_update_bytes(SCHEMA, spec)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        delta = (rng.normal(size=SCHEMA.size) * 10.0 ** rng.integers(-9, 9)).astype(np.float32)
        assert len(encode_update(delta, None, SCHEMA, CodecSpec("topk-log4", max_bytes=least))[0]) <= least
