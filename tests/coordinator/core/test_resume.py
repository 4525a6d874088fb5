"""State is a fold of the journal: killed at any instant, a coordinator goes on with the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.progress import LARGE_MODEL
from fedmq_coordinator.core.publication import rebuild
from fedmq_coordinator.core.state import FederationState
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import Announcement, ModelChunk, Receipt
from tests.coordinator.core.world import SCHEMA, World, assert_same_bits
from tests.coordinator.core.world import settings as run_settings

NAMES = ["a", "b", "c", "d"]
SMALL_SNAPSHOT = {"up": "topk-log4", "density": 0.1, "down": "topk-log4", "down_density": 0.1}


def begin(mode: str = "sync", rounds: int = 500, aside_from: int = LARGE_MODEL) -> World:
    world = World(aside_from=aside_from)
    for name in NAMES:
        world.join(name)
    initial = np.random.default_rng(9).normal(size=SCHEMA.size).astype(np.float32)
    world.start_run(
        run_settings(mode=mode, rounds=rounds, compression=SMALL_SNAPSHOT, strategy={"max_norm_ratio": 1e6}),
        initial=initial,
    )
    return world


def act(world: World, choice: int, rng: np.random.Generator) -> None:
    """One thing that may happen."""
    run = world.core.runs["r1"]
    name = NAMES[choice % 4]
    match choice // 4 % 6:
        case 0 | 1 | 2:
            held = run.leases.get(name)
            if held is not None and world.core.state.devices[name].online:
                delta = rng.normal(size=SCHEMA.size).astype(np.float32)
                world.send(name, delta, lease=held.lease, base=min(held.version, run.version))
        case 3:
            world.pass_time(float(rng.exponential(3.0)))
        case 4:
            world.leave(name, session=world.devices[name].sealer.epoch)
        case _:
            world.join(name, session=world.devices[name].sealer.epoch + 1)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["sync", "fedbuff", "fedasync"]),
    choices=st.lists(st.integers(0, 23), min_size=10, max_size=60),
    seed=st.integers(0, 1000),
    kills=st.sets(st.integers(0, 59), max_size=3),
)
def test_after_every_event_the_journal_gives_the_same_bits(
    mode: str, choices: list[int], seed: int, kills: set[int]
) -> None:
    world = begin(mode)
    rng = np.random.default_rng(seed)
    for turn, choice in enumerate(choices):
        act(world, choice, rng)
        assert_same_bits(world.core, world.replayed())
        if turn in kills:
            world.restart()
            assert_same_bits(world.core, world.replayed())


@pytest.mark.parametrize("mode", ["sync", "fedbuff"])
def test_rebases_bound_the_replay_and_every_version_can_be_rebuilt(mode: str) -> None:
    world = begin(mode)
    rng = np.random.default_rng(1)
    replicas: dict[int, bytes] = {}
    run = world.core.runs["r1"]
    while run.version < 30:
        world.pass_time(1.0)
        for name, held in list(run.leases.items()):
            delta = rng.normal(size=SCHEMA.size).astype(np.float32)
            world.send(name, delta, lease=held.lease, base=min(held.version, run.version))
        replicas[run.version] = run.model.replica.tobytes()
    published = [fact for fact in world.facts() if isinstance(fact, f.VersionPublished)]
    assert sum(fact.snapshot is not None for fact in published) > 2, (
        "the chain is cut when it is as long as a snapshot"
    )
    for version, replica in replicas.items():
        assert rebuild(SCHEMA, published, version).tobytes() == replica
    with pytest.raises(KeyError):
        rebuild(SCHEMA, published, 999)
    held_since = max(
        i for i, fact in enumerate(world.facts()) if isinstance(fact, f.VersionPublished) and fact.private
    )
    last_step = max(
        i for i, fact in enumerate(world.facts()) if isinstance(fact, f.StepTaken) and i < held_since
    )
    pruned = [
        fact.model_copy(update={"payload": None})
        if isinstance(fact, f.UpdateAccepted) and i < last_step
        else fact
        for i, fact in enumerate(world.facts())
    ]
    world.journal = [f.dump(fact) for fact in pruned]
    assert_same_bits(world.core, world.replayed())


def test_receipts_leave_after_what_they_say_is_journaled() -> None:
    world = begin()
    for turn in range(40):
        act(world, turn, np.random.default_rng(turn))
    receipts = 0
    recorded: set[tuple[str, int]] = set()
    for effect in world.effects:
        match effect:
            case do.Record(f.UpdateAccepted(device=device, counter=counter)):
                recorded.add((device, counter))
            case do.Send(topic, Receipt(outcome="accepted", counter=counter)):
                assert (topic.split("/")[4], counter) in recorded
                receipts += 1
            case _:
                pass
    assert receipts > 5


def test_whoever_was_waited_for_has_the_whole_time_again_after_a_restart() -> None:
    world = begin()
    world.pass_time(100)
    world.now += 5000
    world.restart()
    run = world.core.runs["r1"]
    assert (run.round, run.round_open, len(run.leases)) == (1, True, 4), (
        "time without a coordinator does not count"
    )
    assert "closes in 10 min" in world.core.run_view("r1", now=world.now).waiting


def test_after_a_restart_all_that_devices_need_is_published_again() -> None:
    world = begin()
    for name in NAMES:
        world.send(name, 0.1)
    before = world.announcement()
    world.effects.clear()
    world.restart()
    chunks = {(c.version, c.blob) for c in world.sent(ModelChunk)}
    assert chunks == {(0, "snapshot"), (1, "delta")}
    after = world.sent(Announcement)[0]
    assert (after.manifest, after.lease, after.cohort) == (before.manifest, before.lease, before.cohort)
    receipt_again = world.send("a", 0.1)
    assert receipt_again.outcome == "accepted"


def test_duplicates_are_known_after_a_restart() -> None:
    world = begin()
    update = world.update("a", 0.1)
    world.say(world.devices["a"], "update", update)
    world.restart()
    receipt = world.receipt(world.say(world.devices["a"], "update", update))
    assert receipt.outcome == "accepted"
    assert world.core.runs["r1"].accumulator.num_updates == 1


def test_a_lost_evaluation_is_asked_for_again() -> None:
    world = World()
    world.join("a")
    world.join("b")
    vector = np.zeros(SCHEMA.size, np.float32)
    from tests.coordinator.core.world import TASK  # noqa: PLC0415

    world.tell(e.RunRequested("r1", run_settings(rounds=1), TASK, SCHEMA, vector, has_central_data=True))
    for name in "ab":
        world.send(name, 0.1)
    run = world.core.runs["r1"]
    assert run.state == "active"
    assert "evaluation" in world.core.run_view("r1", now=world.now).waiting
    world.effects.clear()
    world.restart()
    assert [x.version for x in world.effects if isinstance(x, do.Evaluate)] == [1]
    world.tell(e.EvaluationFinished("r1", 1, 0.5, 10, {"accuracy": 0.8}))
    assert (run := world.core.runs["r1"]).state == "finished"
    assert run.best_version == 1


def test_an_evaluation_that_never_comes_ends_nothing_but_the_waiting() -> None:
    world = World()
    world.join("a")
    world.join("b")
    from tests.coordinator.core.world import TASK  # noqa: PLC0415

    world.tell(
        e.RunRequested(
            "r1",
            run_settings(rounds=1),
            TASK,
            SCHEMA,
            np.zeros(SCHEMA.size, np.float32),
            has_central_data=True,
        )
    )
    for name in "ab":
        world.send(name, 0.1)
    world.pass_time(61)
    assert world.core.runs["r1"].state == "finished"


def test_a_journal_that_contradicts_itself_is_refused() -> None:
    state = FederationState()
    with pytest.raises(StoreError, match="contradicts itself at fact 1"):
        state.replay(lambda: [f.RunActivated(at=0.0, run="nowhere")])


def test_facts_of_a_newer_program_and_damaged_ones_are_refused() -> None:
    with pytest.raises(StoreError, match="newer fedmq"):
        f.load("SomethingNew", b"\x80")
    for data in (b"", b"\xc1", b"\x81\xa2at\x01"):
        with pytest.raises(StoreError, match="damaged"):
            f.load("RunEnded", data)
