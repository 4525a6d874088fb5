"""Of two coordinators of one federation one goes on, and an older copy of a journal is of use again."""

from __future__ import annotations

import pytest

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.state import FederationState
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.messages import Status
from fedmq_protocol.signing import SigningKey
from tests.coordinator.core.world import FLOAT32, World, settings

KEY = SigningKey(bytes(32))
STRANGER = SigningKey(bytes(range(32)))
ME = "me, pid 1"
OTHER = "other, pid 2"


def begun(*, epoch: int, connections: int) -> World:
    """A coordinator that has connected so often."""
    world = World()
    world.tell(e.CoordinatorStarted(epoch=epoch, public_key=KEY.public_key, who=ME))
    for _ in range(connections - 1):
        world.tell(e.BrokerDisconnected("gone"))
        world.tell(e.BrokerConnected())
    return world


def halts(
    world: World, *, epoch: int, online: bool = True, detail: str = OTHER, key: SigningKey = KEY
) -> list[int | None]:
    """What a status makes it do: for each end, above which epoch it may begin again."""
    status = Status(online=online, session=epoch, public_key=key.public_key, detail=detail)
    topic = world.core.topics.coordinator_status
    packet = Sealer(sender="coordinator", epoch=epoch, key=key).seal(topic, status)
    return [each.above for each in world.tell(e.PacketArrived(topic, packet)) if isinstance(each, do.Halt)]


@pytest.mark.parametrize("connections", [1, 2])
def test_a_coordinator_with_a_newer_epoch_ends_this_one(connections: int) -> None:
    world = begun(epoch=4, connections=connections)
    assert not halts(world, epoch=3)
    assert not halts(world, epoch=4, detail=ME)
    assert not halts(world, epoch=9, key=STRANGER), "a stranger cannot end it"
    assert halts(world, epoch=5) == [None]


@pytest.mark.parametrize("online", [True, False])
def test_of_two_with_the_same_epoch_whoever_hears_of_the_other_begins_a_newer_one(*, online: bool) -> None:
    world = begun(epoch=4, connections=2)
    assert not halts(world, epoch=4, online=online, detail=f"vanished: {ME}"), "its own word"
    assert halts(world, epoch=4, online=online) == [4]


def test_on_an_older_copy_a_newer_epoch_is_begun_if_nobody_comes_back() -> None:
    world = begun(epoch=4, connections=1)
    assert not halts(world, epoch=9, online=False)
    assert world.core.next_deadline() == world.now + 5
    world.now += 5
    assert [each.above for each in world.tell(e.TimePassed()) if isinstance(each, do.Halt)] == [9]


def test_on_an_older_copy_it_ends_if_somebody_comes_back() -> None:
    world = begun(epoch=4, connections=1)
    assert not halts(world, epoch=9, online=False)
    world.tell(e.BrokerDisconnected("put out"))
    world.now += 5
    assert not [each for each in world.tell(e.TimePassed()) if isinstance(each, do.Halt)]
    world.tell(e.BrokerConnected())
    assert halts(world, epoch=9, online=False) == [None]


def test_who_was_there_before_a_newer_one_came_and_went_ends() -> None:
    assert halts(begun(epoch=4, connections=2), epoch=9, online=False) == [None]


def test_an_older_copy_gives_leases_above_all_that_devices_may_have_had() -> None:
    world = World()
    for name in ("a", "b"):
        world.join(name)
    world.start_run(settings(rounds=9, compression=FLOAT32))
    before = {held.lease for held in world.core.runs["r1"].leases.values()}
    assert before == {1}
    world.tell(e.CoordinatorStarted(epoch=world.core.state.epoch + 3, outrun=True))
    assert {fact.lease for fact in world.of(f.LeaseReturned) if isinstance(fact, f.LeaseReturned)} == before
    run = world.core.runs["r1"]
    assert {held.lease for held in run.leases.values()} == {(1 << 20) + 2}
    again = FederationState()
    again.replay(lambda: (f.load(kind, body) for kind, body in world.journal))
    assert again.runs["r1"].leases == run.leases


def test_runs_that_an_older_copy_has_not_begun_are_above_what_devices_may_have_had_too() -> None:
    """One that waits may have been begun by the original since, and one of the next name been made."""
    world = World()
    for name in ("a", "b"):
        world.join(name)
    world.start_run(settings(rounds=9, compression=FLOAT32))
    world.start_run(settings(rounds=9, compression=FLOAT32), run="r2")
    world.tell(e.CoordinatorStarted(epoch=world.core.state.epoch + 3, outrun=True))
    world.start_run(settings(rounds=9, compression=FLOAT32), run="r3")
    assert [world.core.runs[run].lease for run in ("r2", "r3")] == [1 << 20] * 2
    world.tell(e.StopRequested("r1"))
    assert {held.lease for held in world.core.runs["r2"].leases.values()} == {(1 << 20) + 1}
