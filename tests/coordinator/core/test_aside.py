"""Versions of large models are made aside: the machine goes on hearing and answering, and nothing is lost by a kill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_protocol.messages import Announcement, ModelChunk
from tests.coordinator.core.test_resume import NAMES, SMALL_SNAPSHOT, act, begin
from tests.coordinator.core.world import SCHEMA, TASK, World, assert_same_bits
from tests.coordinator.core.world import settings as run_settings


def versions(world: World) -> list[f.VersionPublished]:
    return [fact for fact in world.facts() if isinstance(fact, f.VersionPublished)]


def send_all(world: World, rng: np.random.Generator) -> None:
    run = world.core.runs["r1"]
    for name, held in sorted(run.leases.items()):
        delta = rng.normal(size=SCHEMA.size).astype(np.float32)
        world.send(name, delta, lease=held.lease, base=min(held.version, run.version))


@pytest.mark.parametrize("mode", ["sync", "fedbuff", "fedasync"])
def test_the_same_versions_come_of_it_as_at_once(mode: str) -> None:
    at_once, aside = begin(mode), begin(mode, aside_from=1)
    aside.make()
    for turn in range(12):
        for world in (at_once, aside):
            world.pass_time(1.0)
            run = world.core.runs["r1"]
            rng = np.random.default_rng(turn)
            for name in NAMES:
                held = run.leases.get(name)
                if held is not None:
                    delta = rng.normal(size=SCHEMA.size).astype(np.float32)
                    world.send(name, delta, lease=held.lease, base=held.version)
                if world.aside:
                    world.make()
    assert at_once.journal == aside.journal
    assert len(versions(aside)) > 5
    assert_same_bits(at_once.core, aside.core)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["sync", "fedbuff", "fedasync"]),
    choices=st.lists(st.integers(0, 31), min_size=10, max_size=60),
    seed=st.integers(0, 1000),
    kills=st.sets(st.integers(0, 59), max_size=3),
)
def test_killed_while_a_version_is_made_it_makes_it_again(
    mode: str, choices: list[int], seed: int, kills: set[int]
) -> None:
    world = begin(mode, aside_from=1)
    rng = np.random.default_rng(seed)
    for turn, choice in enumerate(choices):
        if choice < 24:
            act(world, choice, rng)
        elif world.aside:
            world.make()
        assert_same_bits(world.core, world.replayed())
        if turn in kills:
            world.restart()
            assert_same_bits(world.core, world.replayed())
    if world.aside:
        world.make()
    assert world.core.runs["r1"].version >= 0


def test_while_a_version_is_made_devices_are_heard_and_answered() -> None:
    world = begin("sync", aside_from=1)
    world.make()
    world.send("a", 0.1)
    world.leave("b")
    world.leave("c")
    late = world.update("d", 0.2)
    world.leave("d")
    world.pass_time(1.0)
    run = world.core.runs["r1"]
    assert (run.version, run.num_steps, len(world.aside)) == (0, 1, 1)
    before = run.model.replica.tobytes()
    world.pass_time(42.0)
    assert world.core.run_view("r1", now=world.now).waiting == "version 1, which is being made since 43 s"
    world.join("d", session=2)
    world.join("e")
    receipt = world.receipt(world.say(world.devices["d"], "update", late))
    assert receipt.outcome == "accepted"
    assert (run.version, run.num_steps, run.round_open) == (0, 1, False), "no step is taken meanwhile"
    assert run.model.replica.tobytes() == before
    world.effects.clear()
    world.make()
    assert run.version == 1
    assert world.announcement().manifest.version == 1
    assert {"a", "d", "e"} <= run.members, "whoever came meanwhile takes part"
    assert run.accumulator.num_updates == 1, "the late update waits for the next step"
    assert_same_bits(world.core, world.replayed())


def test_the_first_version_is_made_again_after_a_kill() -> None:
    world = begin("sync", aside_from=1)
    assert (len(world.aside), world.sent(Announcement)) == (1, [])
    world.restart()
    assert len(world.aside) == 1
    world.make()
    assert world.announcement().manifest.version == 0
    assert [chunk.version for chunk in world.sent(ModelChunk)] == [0]


def test_a_step_without_its_version_is_published_after_a_restart() -> None:
    world = begin("sync", aside_from=1)
    world.make()
    send_all(world, np.random.default_rng(3))
    world.restart()
    run = world.core.runs["r1"]
    assert (run.version, run.round_open, len(world.aside)) == (0, False, 1)
    world.make()
    assert (run.version, run.round, run.round_open) == (1, 2, True)


def test_a_run_that_is_stopped_meanwhile_gets_no_more_versions() -> None:
    world = begin("sync", aside_from=1)
    world.make()
    world.start_run(run_settings(compression=SMALL_SNAPSHOT), run="r2")
    send_all(world, np.random.default_rng(3))
    world.tell(e.StopRequested("r1"))
    world.pass_time(5.0)
    assert world.core.state.queue == ["r2"], "the model of the first is still in use"
    before = len(versions(world))
    world.make()
    assert [fact.run for fact in versions(world)[before:]] == []
    assert world.core.state.queue == []
    world.make()
    assert [fact.run for fact in versions(world)[before:]] == ["r2"]
    assert_same_bits(world.core, world.replayed())


def test_what_is_evaluated_is_the_version_that_was_made() -> None:
    world = World(aside_from=1)
    for name in NAMES:
        world.join(name)
    initial = np.random.default_rng(9).normal(size=SCHEMA.size).astype(np.float32)
    world.tell(e.RunRequested("r1", run_settings(), TASK, SCHEMA, initial, has_central_data=True))
    world.make()
    send_all(world, np.random.default_rng(1))
    world.make()
    wanted = [effect for effect in world.effects if isinstance(effect, do.Evaluate)]
    run = world.core.runs["r1"]
    assert [each.version for each in wanted] == [0, 1]
    assert wanted[1].vector.tobytes() == run.model.replica.tobytes()
    assert wanted[0].vector.tobytes() != wanted[1].vector.tobytes()
