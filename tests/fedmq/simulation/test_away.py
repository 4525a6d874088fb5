"""A device that was away for a day comes back with an update in its outbox: it counts by its age, or is told why not.

Both cores are the real ones, in virtual time. The power fails between the commit of an update and its first sending,
the worst moment: nobody but the device knows of it.
"""

from __future__ import annotations

import pytest

from fedmq.simulation.device import VirtualDevice
from fedmq.simulation.federation import Cast, Federation
from fedmq.simulation.learner import ToyLearner
from fedmq.simulation.watch import Watch
from fedmq_coordinator.core.facts import Fact, UpdateAccepted, UpdateRejected, VersionPublished
from fedmq_coordinator.core.settings import RunSettings
from fedmq_edge_agent.core.effects import CommitState, Effect, Note
from fedmq_protocol.messages import UpdateHeader

DAY_S = 86_400.0
ROUND_S = 580.0  # some hundred versions a day
LEARNER = ToyLearner(seconds=ROUND_S)
AWAY = "dev-0"


class Leaves(Watch):
    """Switches a device off as soon as it has committed its second update, and on again later.

    Attributes:
        had: the update that it took along.
        notes: what it said afterwards.
    """

    def __init__(self, *, back_after_s: float) -> None:
        self._back_after_s = back_after_s
        self.had: UpdateHeader | None = None
        self.notes: list[str] = []

    def device_did(self, device: VirtualDevice, effect: Effect) -> None:
        if device.name != AWAY:
            return
        if isinstance(effect, Note) and self.had is not None:
            self.notes.append(effect.text)
        run = effect.state.runs.get("r1") if isinstance(effect, CommitState) else None
        if run is not None and run.pending and run.updates_done == 2 and self.had is None:  # the second
            self.had = run.pending[-1].header
            device.fail_after(0, down_s=self._back_after_s)


def settings(rounds: int = 1_000, **strategy: object) -> RunSettings:
    return RunSettings.model_validate(
        {"mode": "fedbuff", "rounds": rounds, "seed": 5, "federated_evaluation": False, "strategy": strategy}
    )


def away(run: RunSettings, *, back_after_s: float = DAY_S) -> tuple[Federation, Leaves]:
    """Four devices, one of which leaves."""
    leaves = Leaves(back_after_s=back_after_s)
    world = Federation(3, Cast(LEARNER, [f"dev-{i}" for i in range(4)]), watch=leaves)
    world.start()
    world.request(run)
    world.world.run(world.world.now + 4 * ROUND_S, done=lambda: leaves.had is not None)
    assert leaves.had is not None
    return world, leaves


def facts(world: Federation, device: str = AWAY) -> list[Fact]:
    return [fact for fact in world.coordinator.journal.read() if getattr(fact, "device", None) == device]


def verdict(world: Federation, header: UpdateHeader) -> UpdateAccepted | UpdateRejected | None:
    """What became of an update; at most one word is spoken on it."""
    found = [
        fact
        for fact in facts(world)
        if isinstance(fact, UpdateAccepted | UpdateRejected)
        and (fact.run, fact.counter) == (header.run, header.counter)
    ]
    assert len(found) <= 1
    return found[0] if found else None


def versions(world: Federation) -> int:
    return sum(isinstance(fact, VersionPublished) for fact in world.coordinator.journal.read())


def come_back(world: Federation, leaves: Leaves, *, after_s: float = DAY_S) -> None:
    """Until the device is back, and was heard out."""
    device = world.devices[AWAY]
    world.world.run(world.world.now + after_s, done=lambda: device.alive)
    world.world.run(world.world.now + after_s, done=lambda: device.starts == 2)  # its second life
    assert device.alive
    world.world.run(world.world.now + 120.0)


def pending(world: Federation, run: str = "r1") -> list[int]:
    kept = world.devices[AWAY].agent.desk.ledger.state.runs.get(run)
    return [] if kept is None else [one.header.counter for one in kept.pending]


def test_within_the_limit_it_counts_by_its_staleness() -> None:
    world, leaves = away(settings(max_staleness=1_000, staleness="polynomial", staleness_exponent=0.5))
    come_back(world, leaves)
    assert leaves.had is not None
    counted = verdict(world, leaves.had)
    assert isinstance(counted, UpdateAccepted)
    assert counted.staleness > 30  # of a day's versions
    assert counted.staleness <= versions(world) - 1 - leaves.had.base_version
    assert counted.weight == pytest.approx(leaves.had.num_examples * (1 + counted.staleness) ** -0.5)
    assert pending(world) == []
    # It is one of them again.
    world.world.run(world.world.now + 4 * ROUND_S)
    newest = [fact for fact in facts(world) if isinstance(fact, UpdateAccepted)][-1]
    assert newest.counter > counted.counter
    assert newest.staleness <= 2  # up to date


def test_beyond_the_limit_it_is_told_so_and_what_it_carried_is_gone_and_counted() -> None:
    world, leaves = away(settings(max_staleness=10))
    before = world.devices[AWAY].disk.state.runs["r1"].residual_file
    come_back(world, leaves)
    assert leaves.had is not None
    refused = verdict(world, leaves.had)
    assert isinstance(refused, UpdateRejected)
    assert (refused.reason, refused.residual) == ("too-old", "discard")
    assert "this run takes updates up to 10 old" in refused.detail
    assert pending(world) == []
    assert world.devices[AWAY].agent.desk.ledger.state.runs["r1"].residual_file == before, (
        "e stays, sent goes"
    )
    assert [note for note in leaves.notes if "is refused" in note] == [
        f"update {leaves.had.counter} is refused (too-old: {refused.detail}); residual: discard"
    ]
    world.world.run(world.world.now + 4 * ROUND_S)
    newest = [fact for fact in facts(world) if isinstance(fact, UpdateAccepted)][-1]
    assert newest.counter > refused.counter


def test_of_a_run_that_is_over_it_is_told_so_and_nothing_waits() -> None:
    world, leaves = away(settings(rounds=12, max_staleness=1_000))
    come_back(world, leaves)
    assert leaves.had is not None
    assert world.is_over()
    assert not isinstance(verdict(world, leaves.had), UpdateAccepted)
    assert pending(world) == []
    assert [note for note in leaves.notes if "the run is over" in note], leaves.notes
    assert "the run r1 is finished" in world.devices[AWAY].agent.waiting(now=world.devices[AWAY].now)


def test_of_an_older_run_it_is_told_so_and_takes_part_in_the_new_one() -> None:
    world, leaves = away(settings(rounds=12, max_staleness=1_000))
    world.request(settings(), run="r2")
    come_back(world, leaves)
    assert leaves.had is not None
    assert not isinstance(verdict(world, leaves.had), UpdateAccepted)
    assert pending(world) == []
    assert [note for note in leaves.notes if "the run is over" in note], leaves.notes
    world.world.run(world.world.now + 4 * ROUND_S)
    newest = [fact for fact in facts(world) if isinstance(fact, UpdateAccepted)][-1]
    assert newest.run == "r2"
    assert set(world.devices[AWAY].disk.state.runs) == {"r2"}, "nothing of the older one is kept"


@pytest.mark.parametrize("kills", [1, 5])
def test_a_coordinator_that_was_started_anew_meanwhile_knows_the_lease_still(kills: int) -> None:
    world, leaves = away(settings(max_staleness=1_000))
    for _ in range(kills):
        world.world.run(world.world.now + DAY_S / 10)
        world.coordinator.kill(down_s=60.0)
    come_back(world, leaves)
    assert leaves.had is not None
    assert isinstance(verdict(world, leaves.had), UpdateAccepted)


@pytest.mark.parametrize("jump_s", [-400 * DAY_S, 400 * DAY_S])
@pytest.mark.parametrize("whose", ["device", "coordinator"])
def test_a_clock_that_jumped_meanwhile_changes_nothing(whose: str, jump_s: float) -> None:
    world, leaves = away(settings(max_staleness=1_000))
    if whose == "device":
        world.devices[AWAY].clock.jump(jump_s)
    else:
        world.coordinator.kill(down_s=60.0)
        world.coordinator.clock.jump(jump_s)
    come_back(world, leaves)
    assert leaves.had is not None
    counted = verdict(world, leaves.had)
    assert isinstance(counted, UpdateAccepted)
    assert counted.staleness > 10  # of a day's versions
    world.world.run(world.world.now + 4 * ROUND_S)
    newest = [fact for fact in facts(world) if isinstance(fact, UpdateAccepted)][-1]
    assert newest.counter > counted.counter
