"""A device that says far more than the protocol needs is not read; whoever says what it needs never notices."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.floods import Floodgate, FloodLimits
from fedmq_protocol.chunks import split
from fedmq_protocol.envelope import Envelope, Reader
from fedmq_protocol.limits import MAX_PACKET_BYTES
from fedmq_protocol.messages import Hello, Notice, Offer, Presence, Report, UploadChunk
from tests.coordinator.core.world import FLOAT32, SCHEMA, World, settings

HELLO = "fedmq/v1/home/dev/a/up/hello"
SMALL = FloodLimits(messages=10, messages_per_s=2.0, payload_bytes=1_000, bytes_per_s=100.0, quiet_s=5.0)


def packet(size: int = 10, topic: str = HELLO) -> e.PacketArrived:
    return e.PacketArrived(topic, bytes(size))


# ------------------------------------------------------------------------------ the allowances


@given(st.lists(st.tuples(st.floats(0, 3, allow_nan=False), st.integers(0, 300)), min_size=1, max_size=120))
def test_what_is_read_of_a_device_is_bounded_by_what_flows_in(said: list[tuple[float, int]]) -> None:
    gate, now = Floodgate(SMALL), 0.0
    taken_messages = taken_bytes = 0
    floods = False
    for wait, size in said:
        now += wait
        verdict = gate.admit("a", packet(size), now=now)
        taken_messages += verdict == "taken"
        taken_bytes += size * (verdict == "taken")
        assert taken_messages <= SMALL.messages + now * SMALL.messages_per_s + 1e-6
        assert taken_bytes <= SMALL.payload_bytes + now * SMALL.bytes_per_s + 1e-6
        if floods:
            assert verdict == "dropped"
        floods |= verdict == "flood"


@given(st.lists(st.integers(0, 25), min_size=1, max_size=200))
def test_who_keeps_below_the_rates_is_always_read(sizes: list[int]) -> None:
    gate = Floodgate(SMALL)
    assert all(
        gate.admit("a", packet(size), now=number * 0.5) == "taken" for number, size in enumerate(sizes)
    )


def test_two_reconnects_at_once_with_the_largest_outbox_pass() -> None:
    gate = Floodgate()
    for _ in range(2):
        assert gate.admit("a", packet(500), now=0.0) == "taken"
        assert {gate.admit("a", packet(MAX_PACKET_BYTES - 1_000), now=0.0) for _ in range(64)} == {"taken"}


def test_a_flood_of_one_is_nobody_elses() -> None:
    gate = Floodgate(SMALL)
    verdicts = Counter(gate.admit("a", packet(), now=0.0) for _ in range(30))
    assert verdicts == {"taken": 10, "dropped": 19, "flood": 1}
    assert gate.admit("b", packet(), now=0.0) == "taken"
    assert str(gate.floods["a"]) == "20 messages of 0.0 MB dropped in 0.0 s"


def test_few_large_packets_are_a_flood_too() -> None:
    gate = Floodgate(SMALL)
    verdicts = [gate.admit("a", packet(500), now=0.0) for _ in range(4)]
    assert verdicts == ["taken", "taken", "dropped", "flood"]


def test_a_flood_is_over_when_it_has_been_quiet_for_so_long() -> None:
    gate = Floodgate(SMALL)
    for _ in range(20):
        gate.admit("a", packet(), now=0.0)
    assert gate.next_end() == 5.0
    assert all(gate.ignores("a", packet(), now=4.0) for _ in range(9))  # eight have flown in
    assert not list(gate.ended(now=5.0))
    assert [name for name, _ in gate.ended(now=9.0)] == ["a"]
    assert gate.next_end() is None
    assert gate.admit("a", packet(), now=9.0) == "taken"


def test_who_says_no_more_than_it_may_floods_no_more() -> None:
    """A device whose updates nobody answers says them again for ever, and is never silent for long."""
    gate = Floodgate(SMALL)
    for _ in range(20):
        gate.admit("a", packet(), now=0.0)
    for now in (1.0, 2.0, 3.0, 4.0, 4.9):
        assert gate.admit("a", packet(), now=now) == "dropped"
    assert [name for name, _ in gate.ended(now=5.0)] == ["a"]
    assert gate.admit("a", packet(), now=5.1) == "taken"


def test_drops_long_ago_do_not_add_up_to_a_flood() -> None:
    gate = Floodgate(SMALL)
    for burst in range(20):
        now = burst * 60.0
        verdicts = Counter(gate.admit("a", packet(), now=now) for _ in range(15))
        assert verdicts == {"taken": 10, "dropped": 5}


def test_accounts_that_are_full_are_forgotten() -> None:
    gate = Floodgate(SMALL)
    for number in range(20_000):
        gate.admit(f"dev-{number}", packet(), now=number * 0.1)
    assert len(gate._accounts) <= 1_025


# ------------------------------------------------------------------------------ the coordinator


@dataclass
class CountingReader(Reader):
    """Counts what is opened and verified."""

    opened: int = 0
    checked: int = 0
    topics: list[str] = field(default_factory=list)

    def open(self, topic: str, payload: bytes) -> Envelope:
        self.opened += 1
        return super().open(topic, payload)

    def verified(self, envelope: Envelope, public_key: bytes) -> Envelope:
        self.checked += 1
        return super().verified(envelope, public_key)


@pytest.fixture
def world() -> World:
    world = World()
    for name in "abc":
        world.join(name)
    world.start_run(settings(compression=FLOAT32, rounds=3))
    return world


def flood(world: World, name: str, count: int = 1_200) -> None:
    """Well-formed and well-signed messages, at one moment; after the first few one and the same."""
    device, topic = world.devices[name], f"fedmq/v1/home/dev/{name}/up/hello"
    sealed = [device.sealer.seal(topic, Hello()) for _ in range(min(count, 520))]
    for number in range(count):
        event = e.PacketArrived(topic, sealed[min(number, len(sealed) - 1)])
        effects = world.core.handle(event, now=world.now)
        world.journal += [f.dump(effect.fact) for effect in effects if isinstance(effect, do.Record)]
        world.effects += effects


def test_a_flooder_costs_no_more_signatures_and_is_not_waited_for(world: World) -> None:
    reader = world.core._desk.reader = CountingReader()
    flood(world, "a")
    assert reader.checked < 501
    opened = reader.opened
    flood(world, "a", 5_000)
    assert reader.opened == opened
    assert [fact for fact in world.facts() if isinstance(fact, f.LeaseReturned)] == [
        f.LeaseReturned(at=world.now, run="r1", device="a", lease=1, why="flood")
    ]
    world.send("b", 0.5)
    world.send("c", 0.5)
    run = world.core.runs["r1"]
    assert run.version == 1  # the round is over without it
    assert "a" not in run.leases


def test_the_operator_and_the_device_are_told_once(world: World) -> None:
    flood(world, "a", 6_000)
    notes = [x for x in world.effects if isinstance(x, do.Note) and x.fields.get("reason") == "flood"]
    assert [(note.level, note.fields["device"]) for note in notes] == [("error", "a")]
    assert "a floods the coordinator (500 messages" in notes[0].text
    assert [notice.code for notice in world.sent(Notice)] == ["flood"]
    view = world.core.view(now=world.now)
    (shown,) = [device for device in view.devices if device.device == "a"]
    assert shown.state == "unable"
    assert "floods the coordinator" in shown.problem
    assert view.rejections == shown.rejections == {"flood": 1}


def test_a_flooder_that_falls_silent_is_asked_to_come_anew(world: World) -> None:
    """It may have been put out, without its last will: nobody is to wait for it."""
    flood(world, "a")
    world.pass_time(29.0)
    flood(world, "a", 501)
    world.pass_time(29.0)
    assert world.core.view(now=world.now).devices[0].problem
    world.pass_time(2.0)
    shown = world.core.view(now=world.now).devices[0]
    assert (shown.state, shown.problem) == ("offline", "")
    assert world.sent(Notice)[-1].session == 2
    world.join("a", session=3)
    world.send("b", 0.5)
    world.send("c", 0.5)
    assert "a" in world.core.runs["r1"].members


def test_a_flood_that_goes_on_is_told_of_again(world: World) -> None:
    """To whoever may cut it off, every five seconds; the log hears of it every thirty."""
    world.core._conversation._gate = Floodgate(FloodLimits(messages=50, messages_per_s=5.0))
    for _ in range(100):
        flood(world, "a", 10)
        world.pass_time(1.0)
    notes = [x for x in world.effects if isinstance(x, do.Note) and x.level == "error"]
    assert len(notes) == 3
    notices = [notice for notice in world.sent(Notice) if notice.code == "flood"]
    assert len(notices) == 17  # it floods from the tenth second on
    assert all(notice.session is None for notice in notices)
    world.pass_time(28.0)
    assert len(world.sent(Notice)) == 18  # what came in between
    assert world.core.view(now=world.now).devices[0].problem


def test_its_last_presence_counts_when_the_flood_is_over(world: World) -> None:
    flood(world, "a")
    world.leave("a")  # a last will, say, when the broker puts it out
    assert world.core.state.devices["a"].online
    world.pass_time(31.0)
    assert not world.core.state.devices["a"].online


def test_a_flood_of_births_and_deaths_is_one(world: World) -> None:
    world.core._conversation._gate = Floodgate(FloodLimits(messages=10))
    for session in range(2, 50):
        world.join("b", session=session)
    assert world.core.state.devices["b"].flood
    world.pass_time(31.0)
    assert world.core.state.devices["b"].session == 49


def test_a_stranger_can_flood_too() -> None:
    world = World()
    for _ in range(1_100):
        world.tell(e.PacketArrived("fedmq/v1/home/dev/nobody/up/hello", b"garbage"))
    notes = [x.text for x in world.effects if isinstance(x, do.Note) and x.level == "error"]
    assert len(notes) == 1
    assert notes[0].startswith("nobody floods")


def test_what_lands_in_the_journal_costs_more(world: World) -> None:
    before = world.core.runs["r1"].num_rejected
    for _ in range(100):
        world.say(world.devices["a"], "update", world.update("a", 0.5, lease=99))
    assert world.core.runs["r1"].num_rejected - before <= 21
    for _ in range(100):
        world.say(world.devices["b"], "report", Report(code="other", detail="again"))
    assert len([x for x in world.effects if isinstance(x, do.Note) and "b reports" in x.text]) <= 21


def test_chunks_that_were_asked_for_cost_nothing(world: World) -> None:
    world.core._conversation._gate = Floodgate(FloodLimits(messages=2, messages_per_s=1e-9))
    noise = np.random.default_rng(1).normal(size=SCHEMA.size).astype(np.float32)
    update = world.update("a", noise)
    chunks = split(update.data, 1_024)
    assert len(chunks) == 2
    device = world.devices["a"]
    world.say(device, "offer", Offer(header=update.header, chunk_bytes=1_024))
    for index, data in enumerate(chunks):
        world.say(device, "chunk", UploadChunk(run="r1", counter=0, index=index, data=data))
    assert "a" in world.core.runs["r1"].answered
    for _ in range(2):
        world.say(device, "chunk", UploadChunk(run="r1", counter=0, index=0, data=chunks[0]))
    assert world.core._conversation._gate.admit("a", packet(), now=world.now) != "taken"


def test_training_as_fast_as_it_can_is_no_flood() -> None:
    """Updates that count, more of them at once than a device may say other things."""
    world = World()
    for name in "ab":
        world.join(name)
    world.core._conversation._gate = Floodgate(FloodLimits(messages=2, messages_per_s=1e-9))
    world.start_run(settings(compression=FLOAT32, rounds=50))
    assert {world.send(name, 0.001).outcome for name in "ab" * 40} == {"accepted"}
    assert world.core.runs["r1"].version == 40
    assert not world.core.view(now=world.now).rejections


def test_a_presence_of_a_flooder_is_bounded_by_a_packet() -> None:
    gate = Floodgate(SMALL)
    for size in (50, 60, 70):
        for _ in range(20):
            gate.admit("a", packet(size, "fedmq/v1/home/dev/a/presence"), now=0.0)
    kept = gate.floods["a"].presence
    assert kept is not None
    assert len(kept.payload) == 70


def test_a_presence_may_be_cleared_in_a_flood(world: World) -> None:
    flood(world, "a")
    world.tell(e.PacketArrived("fedmq/v1/home/dev/a/presence", b""))
    world.pass_time(31.0)
    assert not world.core.state.devices["a"].flood
    assert isinstance(world.core.state.devices["a"].presence, Presence)
