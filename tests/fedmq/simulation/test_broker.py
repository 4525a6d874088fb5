"""The simulated broker: the rules of MQTT 3.1.1, and what Mosquitto was seen to do."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from fedmq.simulation.broker import Arrived, Broker, Closed, Event, Limits, Session, Will
from fedmq.simulation.network import Calm, Fate, Way, WillFate
from tests.fedmq.simulation.wheel import Wheel


@dataclass
class Scripted(Calm):
    """Each packet's fate by hand, in order; then calm."""

    up: list[Fate] = field(default_factory=list)
    down: list[Fate] = field(default_factory=list)
    last_will: WillFate | None = field(default=WillFate(15.0))

    def __post_init__(self) -> None:
        super().__init__(0.01)

    def fate(self, client_id: str, way: Way, topic: str, payload: bytes) -> Fate:
        waiting = self.up if way == "up" else self.down
        return waiting.pop(0) if waiting else Fate(0.01)

    def will(self, client_id: str) -> WillFate | None:
        return self.last_will


class World:
    def __init__(self, limits: Limits | None = None) -> None:
        self.clock = Wheel()
        self.network = Scripted()
        self.broker = Broker(self.clock, self.network, limits)
        self.heard: dict[str, list[Event]] = {}
        self.acks: list[str] = []

    def connect(self, client_id: str, *filters: str, will: Will | None = None) -> Session:
        session = self.broker.connect(client_id, will, self.heard.setdefault(client_id, []).append)
        assert session is not None
        session.subscribe(filters)
        self.clock.run(self.clock.now + 1.0)
        return session

    def publish(self, session: Session, topic: str, payload: bytes, *, retain: bool = False) -> None:
        session.publish(topic, payload, retain=retain, on_ack=lambda: self.acks.append(payload.decode()))

    def messages(self, client_id: str) -> list[str]:
        return [event.payload.decode() for event in self.heard[client_id] if isinstance(event, Arrived)]


def test_a_message_goes_to_whoever_subscribes_and_is_acknowledged() -> None:
    world = World()
    world.connect("a", "x/+")
    world.connect("b", "y")
    world.publish(world.connect("c"), "x/1", b"m")
    world.clock.run()
    assert world.heard == {"a": [Arrived("x/1", b"m", retained=False)], "b": [], "c": []}
    assert world.acks == ["m"]


def test_messages_keep_their_order_however_long_each_takes() -> None:
    world = World()
    world.connect("a", "t")
    sender = world.connect("b")
    world.network.up = [Fate(3.0), Fate(0.1), Fate(0.2)]
    world.network.down = [Fate(0.1), Fate(2.0), Fate(0.1)]
    for text in (b"1", b"2", b"3"):
        world.publish(sender, "t", text)
    world.clock.run()
    assert world.messages("a") == ["1", "2", "3"]


def test_one_that_overtakes_holds_nobody_up() -> None:
    world = World()
    world.connect("a", "t")
    sender = world.connect("b")
    world.network.up = [Fate(3.0, overtakes=True), Fate(0.1)]
    for text in (b"1", b"2"):
        world.publish(sender, "t", text)
    world.clock.run()
    assert world.messages("a") == ["2", "1"]


@pytest.mark.parametrize(
    ("fate", "heard", "acked"),
    [
        (Fate(loss="packet"), [], []),
        (Fate(loss="ack"), ["m"], []),
        (Fate(loss="routing"), [], ["m"]),
        (Fate(copies=2), ["m", "m"], ["m"]),
    ],
)
def test_what_can_be_lost_on_the_way_up(fate: Fate, heard: list[str], acked: list[str]) -> None:
    world = World()
    world.connect("a", "t")
    world.network.up = [fate]
    world.publish(world.connect("b"), "t", b"m")
    world.clock.run()
    assert (world.messages("a"), world.acks) == (heard, acked)


def test_what_can_be_lost_on_the_way_down() -> None:
    world = World()
    world.connect("a", "t")
    world.network.down = [Fate(loss="packet"), Fate(copies=3)]
    sender = world.connect("b")
    for text in (b"1", b"2"):
        world.publish(sender, "t", text)
    world.clock.run()
    assert world.messages("a") == ["2", "2", "2"]
    assert world.acks == ["1", "2"]


def test_a_cut_ends_the_connection_with_its_packet() -> None:
    world = World()
    world.connect("a", "t", "w")
    sender = world.connect("b", will=Will("w", b"gone"))
    world.network.up = [Fate(cuts=True)]
    world.publish(sender, "t", b"1")
    world.publish(sender, "t", b"2")  # under way when the connection ends
    world.clock.run()
    assert world.messages("a") == ["1", "gone"]
    assert world.heard["b"] == [Closed("the connection was cut")]
    assert world.acks == []


def test_a_full_queue_drops_what_was_acknowledged() -> None:
    """As measured with Mosquitto 2.0.11 and `max_queued_messages`: of 1,500 behind a stalled client, 1,000 arrived."""
    world = World(Limits(inflight=20, queued=1_000))
    world.connect("a", "t")
    world.network.down = [Fate(60.0)] * 20  # it reads nothing for a minute
    sender = world.connect("b")
    for number in range(1_500):
        world.publish(sender, "t", b"%d" % number)
    world.clock.run()
    assert len(world.acks) == 1_500
    assert world.messages("a") == [str(number) for number in range(1_020)]
    assert world.broker.num_dropped == 480


def test_the_last_will_comes_when_the_broker_notices() -> None:
    world = World()
    world.connect("a", "w")
    world.connect("b", will=Will("w", b"gone")).vanish()
    world.clock.run(10.0)
    assert world.messages("a") == []
    world.clock.run()
    assert world.messages("a") == ["gone"]
    assert world.broker.retained.messages == {"w": b"gone"}


def test_a_new_connection_of_the_same_client_brings_the_last_will_forward() -> None:
    world = World()
    world.connect("a", "w")
    world.connect("b", will=Will("w", b"gone")).vanish()
    world.publish(world.connect("b"), "w", b"back", retain=True)
    world.clock.run()
    assert world.messages("a") == ["gone", "back"]
    assert world.broker.retained.messages == {"w": b"back"}


def test_a_will_may_come_after_the_new_birth_or_never() -> None:
    world = World()
    world.connect("a", "w")
    world.network.last_will = WillFate(15.0, outlives=True)
    world.connect("b", will=Will("w", b"gone")).vanish()
    world.publish(world.connect("b"), "w", b"back", retain=True)
    world.clock.run()
    assert world.messages("a") == ["back", "gone"]
    world.network.last_will = None
    world.connect("c", will=Will("w", b"never")).vanish()
    world.clock.run()
    assert world.messages("a") == ["back", "gone"]


@pytest.mark.parametrize("keep", [True, False])
def test_a_broker_that_is_killed_loses_what_it_did_not_save(*, keep: bool) -> None:
    world = World()
    session = world.connect("a", "t", will=Will("w", b"gone"))
    world.publish(session, "r", b"kept", retain=True)
    world.clock.run()
    world.publish(session, "r", b"under way", retain=True)
    world.broker.stop(keep_retained=keep)
    assert world.broker.connect("a", None, world.heard["a"].append) is None
    world.broker.start()
    world.clock.run()
    assert world.heard["a"] == [Closed("the broker is gone")]
    world.connect("b", "r", "w")
    assert world.messages("b") == (["kept"] if keep else [])


def test_who_connects_again_replaces_the_other() -> None:
    world = World()
    world.connect("a", "t")
    second = world.broker.connect("a", None, world.heard["a"].append)
    assert second is not None
    world.clock.run()
    assert world.heard["a"] == [Closed("its client id connected again")]
    world.publish(world.connect("b"), "t", b"m")
    world.clock.run()
    assert world.messages("a") == []  # the new session is clean


def test_a_packet_that_is_too_large_costs_the_connection() -> None:
    world = World(Limits(packet_bytes=4))
    world.publish(world.connect("a"), "t", b"12345")
    world.clock.run()
    assert world.heard["a"] == [Closed("a packet of 5 bytes")]
    assert world.acks == []
