"""Whole runs in virtual time, against a plain loop over the codecs; the same seed twice; everybody killed once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq.simulation.coordinator import CoordinatorOptions
from fedmq.simulation.device import DeviceOptions, VirtualDevice
from fedmq.simulation.federation import Cast, Federation
from fedmq.simulation.learner import ToyLearner
from fedmq.simulation.watch import Watch
from fedmq_coordinator.core.checkpoint import differs
from fedmq_coordinator.core.facts import (
    RunEnded,
    StepTaken,
    UpdateAccepted,
    VersionPublished,
    dump,
)
from fedmq_coordinator.core.publication import rebuild
from fedmq_coordinator.core.settings import RunSettings
from fedmq_edge_agent.core.effects import Effect, Train
from fedmq_edge_agent.core.events import Event
from fedmq_edge_agent.trainer.feedback import update_spec
from fedmq_protocol.codecs import (
    CodecSpec,
    apply_delta,
    decode_update,
    encode_delta,
    encode_update,
    flushed,
    requantise,
)

Vector = NDArray[np.float32]

LEARNER = ToyLearner()
SPARSE = {"up": "topk-log4", "down": "topk-log4", "density": 0.4, "down_density": 0.5}
MODES = ("sync", "fedbuff", "fedasync")


def settings(mode: str, rounds: int = 12, **changes: object) -> RunSettings:
    plain = {"mode": mode, "rounds": rounds, "seed": 5, "compression": SPARSE, "federated_evaluation": False}
    return RunSettings.model_validate(plain | changes)


def federation(seed: int = 1, devices: int = 4, watch: Watch | None = None) -> Federation:
    return Federation(seed, Cast(LEARNER, [f"dev-{i}" for i in range(devices)]), watch=watch)


def play(world: Federation, *, limit_s: float = 10_000.0) -> None:
    world.world.run(world.world.now + limit_s, done=world.is_over)
    assert world.is_over(), world.coordinator.core.run_view("r1", now=world.coordinator.now)
    world.world.run(world.world.now + 120.0)  # what is under way arrives


def plain_loop(world: Federation, run: RunSettings) -> tuple[Vector, Vector]:
    """Weights and replica by the codecs alone; of the journal only who was heard when, and with which weight."""
    schema = LEARNER.schema
    weights = np.zeros(schema.size, np.float32)
    total = np.zeros(schema.size, np.float32)
    replicas: list[Vector] = []
    residuals: dict[str, Vector] = {}
    done: dict[str, int] = {}
    down = CodecSpec(run.compression.down, run.compression.down_density, code_ms=run.compression.code_ms)
    for fact in world.coordinator.journal.read():
        match fact:
            case VersionPublished():
                replica = replicas[-1].copy() if replicas else weights.copy()
                if fact.delta is not None:
                    data = encode_delta(weights, replica, schema, down)
                    assert data == fact.delta.data
                    apply_delta(replica, data, schema)
                if fact.snapshot is not None:
                    replica = requantise(replica, schema, run.compression.snapshot)
                    weights = flushed(weights)
                replicas.append(replica)
            case UpdateAccepted(device=device):
                upload = run.compression.upload
                request = Train(
                    "r1",
                    fact.counter,
                    fact.lease,
                    fact.base_version,
                    5,
                    run.train,
                    upload,
                    0,
                    None,
                    evaluate=False,
                )
                learnt = LEARNER.train(device, request, replicas[fact.base_version])
                before = residuals.get(device)
                if before is not None:
                    bound = upload.residual_cap * np.linalg.norm(learnt.change.astype(np.float64))
                    assert np.linalg.norm(before.astype(np.float64)) < bound, "the bound never bites here"
                data, residuals[device] = encode_update(
                    learnt.change, before, schema, update_spec(upload, done.get(device, 0))
                )
                done[device] = done.get(device, 0) + 1
                assert data == fact.payload
                decode_update(data, schema).parameters.add_to(total, fact.weight * fact.clip)
            case StepTaken():
                weights += np.float32(fact.scale) * total
                total = np.zeros(schema.size, np.float32)
            case _:
                pass
    return weights, replicas[-1]


@pytest.mark.parametrize("mode", MODES)
def test_a_lossless_run_is_what_a_plain_loop_over_the_codecs_gives(mode: str) -> None:
    world, run_settings = federation(), settings(mode)
    world.start()
    world.request(run_settings)
    play(world)
    ended = [fact for fact in world.coordinator.journal.read() if isinstance(fact, RunEnded)]
    assert [fact.state for fact in ended] == ["finished"]
    weights, replica = plain_loop(world, run_settings)
    run = world.coordinator.make_core().runs["r1"]
    assert run.version == 12
    published = [f for f in world.coordinator.journal.read() if isinstance(f, VersionPublished)]
    assert any(fact.snapshot is not None for fact in published[1:]), "no rebase happened"
    assert run.model.replica.tobytes() == replica.tobytes()
    assert run.model.weights.tobytes() == weights.tobytes()


class Held(Watch):
    """Which bits devices hold of which version."""

    def __init__(self) -> None:
        self.bits: dict[tuple[str, int], set[bytes]] = {}

    def held(self, device: object, run: str, version: int, replica: Vector) -> None:
        self.bits.setdefault((run, version), set()).add(replica.tobytes())


@pytest.mark.parametrize("mode", MODES)
def test_every_device_holds_the_bits_that_the_coordinator_published(mode: str) -> None:
    watch = Held()
    world = federation(watch=watch)
    world.start()
    world.request(settings(mode))
    play(world)
    published = [fact for fact in world.coordinator.journal.read() if isinstance(fact, VersionPublished)]
    assert len(watch.bits) >= 10
    for (_, version), bits in watch.bits.items():
        assert bits == {rebuild(LEARNER.schema, published, version).tobytes()}


def test_the_model_learns_the_weighted_mean_of_the_targets() -> None:
    world = federation()
    world.start()
    world.request(settings("sync", 60, strategy={"server_lr": 1.0}))
    play(world)
    shares = np.array([LEARNER.num_examples(name) for name in world.devices], np.float64)
    targets = np.stack([LEARNER.target(name) for name in world.devices]).astype(np.float64)
    mean = shares @ targets / shares.sum()
    learnt = world.coordinator.make_core().runs["r1"].model.weights
    assert np.abs(learnt - mean).max() < 0.1  # noise of 8 steps of 2^-10, and steps of a coarse quantiser


class Trace(Watch):
    """A hash over everything that anybody was told or did."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def device_told(self, device: object, event: Event) -> None:
        self.digest.update(repr(event).encode())

    def device_did(self, device: object, effect: Effect) -> None:
        self.digest.update(repr(effect).encode())

    def coordinator_told(self, coordinator: object, event: object) -> None:
        self.digest.update(repr(event).encode())


def traced(seed: int) -> str:
    trace = Trace()
    world = federation(seed, watch=trace)
    world.start()
    world.request(settings("fedbuff", 6))
    world.world.after(3.0, lambda: world.devices["dev-1"].fail_after(3, down_s=4.0))
    world.world.after(5.0, lambda: world.coordinator.kill(down_s=2.0))
    play(world)
    for kind, data in world.coordinator.journal.rows:
        trace.digest.update(kind.encode() + data)
    return f"{trace.digest.hexdigest()} {world.world.steps} {world.world.now!r}"


def test_the_same_seed_is_the_same_history_in_processes_that_hash_differently() -> None:
    root = Path(__file__).parents[3]
    code = "from tests.fedmq.simulation.test_federation import traced; print(traced(7))"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] == traced(7)
    assert traced(8) != said[0]


def counted(world: Federation) -> dict[tuple[str, int], bytes]:
    """Accepted updates; each once."""
    accepted = [f for f in world.coordinator.journal.read() if isinstance(f, UpdateAccepted)]
    by_id = {(f.device, f.counter): f.payload or b"" for f in accepted}
    assert len(by_id) == len(accepted)
    return by_id


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("effects", [0, 1, 3, 7])
def test_a_device_whose_power_fails_loses_nothing(mode: str, effects: int) -> None:
    world = federation()
    world.start()
    world.request(settings(mode, 8))
    for round_number in range(4):
        at = 2.5 + 2.7 * round_number
        world.world.after(at, lambda: world.devices["dev-0"].fail_after(effects, down_s=1.0))
    play(world)
    assert world.devices["dev-0"].starts >= 3
    counted(world)
    for name, device in world.devices.items():
        assert not device.agent.desk.outbox, name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", ["before-commit", "after-commit", "between-sends", "any"])
def test_a_killed_coordinator_goes_on_where_its_journal_ends(mode: str, moment: str) -> None:
    world = federation()
    world.start()
    world.request(settings(mode, 8))

    def kill() -> None:
        if moment == "any":
            world.coordinator.kill(down_s=1.0)
        elif moment == "before-commit":
            world.coordinator.fail_at("before-commit", down_s=1.0)
        else:
            world.coordinator.fail_at("after-commit", sends=int(moment == "between-sends"), down_s=1.0)

    for number in range(4):
        world.world.after(0.5 + 2.3 * number, kill)
    play(world)
    assert world.coordinator.starts == 5
    assert world.coordinator.core.state.epoch == 5
    counted(world)
    live, replayed = world.coordinator.core.runs["r1"], world.coordinator.make_core().runs["r1"]
    assert live.model.replica.tobytes() == replayed.model.replica.tobytes()
    assert live.model.weights.tobytes() == replayed.model.weights.tobytes()


@pytest.mark.parametrize("every", [1, 7, 30])
def test_a_start_out_of_a_checkpoint_is_one_out_of_the_journal(every: int) -> None:
    ended: list[tuple[int, list[tuple[str, bytes]]]] = []
    for facts in (every, 0):
        cast = Cast(LEARNER, ["dev-0", "dev-1"], coordinator=CoordinatorOptions(checkpoint_facts=facts))
        world = Federation(2, cast)
        world.start()
        world.request(settings("fedbuff", 8))
        for number in range(6):
            world.world.after(2.0 + 2.3 * number, partial(world.coordinator.kill, down_s=0.5))
        play(world)
        assert world.coordinator.starts == 7
        assert (world.coordinator.journal.num_after_checkpoint < every) == (facts > 0)
        out_of_it = world.coordinator.resumed_core().checkpoint()
        folded = world.coordinator.make_core().checkpoint()
        assert out_of_it is not None
        assert folded is not None
        assert differs(out_of_it, folded) is None
        ended.append((world.world.steps, world.coordinator.journal.rows))
    assert ended[0] == ended[1]


@pytest.mark.parametrize("keep_retained", [True, False])
def test_a_run_ends_although_the_broker_is_restarted(*, keep_retained: bool) -> None:
    world = federation()
    world.start()
    world.request(settings("fedbuff", 8))
    for number in range(3):
        world.world.after(3.0 + 4.0 * number, lambda: world.broker.restart(keep_retained=keep_retained))
    play(world)
    counted(world)


def test_a_device_can_do_every_effect() -> None:
    assert set(get_args(Effect)) == set(VirtualDevice._perform)


def test_versions_made_aside_give_the_same_model() -> None:
    made: list[bytes] = []
    for aside_from in (1, 10**6):
        cast = Cast(LEARNER, ["dev-0"], coordinator=CoordinatorOptions(aside_from=aside_from))
        world = Federation(3, cast)
        world.start()
        world.request(settings("sync", 6, selection={"min_available_devices": 1}))
        play(world)
        made.append(world.coordinator.make_core().runs["r1"].model.weights.tobytes())
    assert made[0] == made[1]


def test_a_coordinator_killed_while_a_version_is_made_makes_it_again() -> None:
    world = Federation(3, Cast(LEARNER, ["dev-0", "dev-1"], coordinator=CoordinatorOptions(aside_from=1)))
    world.start()
    world.request(settings("sync", 6))
    for number in range(30):
        world.world.after(0.15 + 0.7 * number, lambda: world.coordinator.kill(down_s=0.3))
    play(world)
    assert world.coordinator.starts > 10
    counted(world)


def test_the_evaluation_of_a_version_ends_a_run_that_has_reached_its_target() -> None:
    asked: list[bytes] = []

    def evaluate(vector: Vector) -> tuple[float, int, dict[str, float]]:
        asked.append(vector.tobytes())
        return 1.0 / len(asked), 10, {"accuracy": len(asked) / 4}

    world = Federation(1, Cast(LEARNER, ["dev-0", "dev-1"], evaluate=evaluate))
    world.start()
    world.request(settings("sync", 20, target=1.0))
    play(world)
    published = [fact for fact in world.coordinator.journal.read() if isinstance(fact, VersionPublished)]
    assert asked == [rebuild(LEARNER.schema, published, version).tobytes() for version in range(4)]
    assert world.coordinator.core.runs["r1"].version in {3, 4}  # the fourth evaluation is of version 3


def test_clocks_that_are_wrong_change_no_bit_of_what_is_learnt_in_rounds() -> None:
    learnt: list[list[tuple[int, str, bytes | None]]] = []
    for ahead_s, rate in ((0.0, 1.0), (-1.7e9, 1.3), (86_400.0, 0.8)):
        options = {"dev-1": DeviceOptions(ahead_s=ahead_s, rate=rate)}
        world = Federation(1, Cast(LEARNER, ["dev-0", "dev-1"], options))
        world.start()
        world.request(settings("sync", 6, selection={"deadline_factor": 0.0}))
        world.world.after(5.0, partial(world.devices["dev-1"].clock.jump, -ahead_s))
        play(world)
        folded = sorted(
            (fact.lease, fact.device, fact.payload)
            for fact in world.coordinator.journal.read()
            if isinstance(fact, UpdateAccepted)
        )
        learnt.append(folded)
    assert learnt[0] == learnt[1] == learnt[2]


@pytest.mark.parametrize("seed", range(6))
def test_a_device_whose_files_are_torn_gets_the_model_again(seed: int) -> None:
    watch = Held()
    world = federation(seed, 2, watch)
    world.start()
    world.request(settings("sync", 10))
    for number in range(5):
        cut = partial(world.devices["dev-0"].cut_power, down_s=0.5, torn=world.world.stream("torn", number))
        world.world.after(3.0 + 4.0 * number, cut)
    play(world)
    published = [fact for fact in world.coordinator.journal.read() if isinstance(fact, VersionPublished)]
    for (_, version), bits in watch.bits.items():
        assert bits == {rebuild(LEARNER.schema, published, version).tobytes()}
    counted(world)


def test_a_device_whose_disk_is_full_for_a_while_goes_on_afterwards() -> None:
    world = federation(devices=2)
    world.start()
    world.request(settings("sync", 12, selection={"min_updates": 1}))
    disk = world.devices["dev-0"].disk
    world.world.after(6.0, lambda: setattr(disk, "full", True))
    world.world.after(40.0, lambda: setattr(disk, "full", False))
    play(world)
    assert disk.refused > 0
    assert world.devices["dev-0"].starts == 1
    counted(world)


def test_facts_are_on_disk_before_what_relies_on_them_is_said() -> None:
    seen: list[str] = []

    class Order(Watch):
        def journaled(self, coordinator: object, facts: object) -> None:
            seen.append("facts")

        def coordinator_did(self, coordinator: object, effect: object) -> None:
            seen.append(type(effect).__name__)

    world = federation(watch=Order())
    world.start()
    world.request(settings("sync", 3))
    play(world)
    first_record = seen.index("Record")
    assert "facts" in seen[:first_record]
    assert world.coordinator.journal.rows == [dump(fact) for fact in world.coordinator.journal.read()]
