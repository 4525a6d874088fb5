"""The simulated broker beside the embedded one: without faults, every client sees the same."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedmq.simulation.broker import Arrived, Broker, Event, Session, Will
from fedmq.simulation.network import Calm, WillFate
from fedmq_broker.embedded.model import (
    BrokerModel,
    ConnectionLost,
    ConnectionOpened,
    PacketArrived,
    SendPacket,
)
from fedmq_broker.embedded.packets import (
    Connect,
    Disconnect,
    FromClient,
    Puback,
    Publish,
    Subscribe,
    Unsubscribe,
)
from tests.fedmq.simulation.wheel import Wheel

CLIENTS = st.sampled_from(["a", "b", "c"])
TOPICS = st.sampled_from(["x", "x/1", "x/2", "y/1"])
FILTERS = st.sampled_from(["x", "x/+", "#", "+/1", "x/1"])


class Twins(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Wheel()
        self.broker = Broker(self.clock, Calm(0.001, WillFate(0.0)))
        self.model = BrokerModel()
        self.sessions: dict[str, Session] = {}
        self.connections: dict[str, int] = {}
        self.opened = 0
        self.ours: dict[str, list[Event]] = {}
        self.theirs: dict[str, list[Event]] = {}
        self.acks: Counter[str] = Counter()
        self.their_acks: Counter[str] = Counter()

    def tell(self, event: ConnectionOpened | PacketArrived | ConnectionLost) -> None:
        """Tell the embedded broker, and hear what it says; messages are acknowledged at once."""
        for effect in self.model.handle(event, now=0.0):
            who = next((one for one, number in self.connections.items() if number == effect.connection), None)
            if who is None or not isinstance(effect, SendPacket):
                continue
            match effect.packet:
                case Publish(topic=topic, payload=payload, retain=retain, packet_id=packet_id):
                    self.theirs[who].append(Arrived(topic, payload, retain))
                    self.model.handle(PacketArrived(effect.connection, Puback(packet_id)), now=0.0)
                case Puback():
                    self.their_acks[who] += 1
                case _:
                    pass

    def say(self, name: str, packet: FromClient) -> None:
        self.tell(PacketArrived(self.connections[name], packet))
        self.clock.run()

    @rule(name=CLIENTS)
    def connect(self, name: str) -> None:
        self.leave_unseen(name)
        self.opened += 1
        self.ours[name], self.theirs[name] = [], []
        self.connections[name] = self.opened
        self.tell(ConnectionOpened(self.opened))
        will = Publish("x/" + name, b"gone", 1, retain=True)
        self.tell(PacketArrived(self.opened, Connect(client_id=name, will=will)))
        session = self.broker.connect(name, Will(will.topic, will.payload), self.ours[name].append)
        assert session is not None
        self.sessions[name] = session
        self.clock.run()

    def leave_unseen(self, name: str) -> None:
        """Whoever connects again under its name hears no more on the old connection."""
        if name in self.sessions:
            self.sessions[name].on_event = lambda _: None

    @rule(name=CLIENTS, topic=TOPICS, payload=st.binary(max_size=1), retain=st.booleans())
    def publish(self, name: str, topic: str, payload: bytes, retain: bool) -> None:  # noqa: FBT001
        if name in self.sessions:

            def count() -> None:
                self.acks[name] += 1

            self.sessions[name].publish(topic, payload, retain=retain, on_ack=count)
            self.say(name, Publish(topic, payload, 1, retain, packet_id=7))

    @rule(name=CLIENTS, topic_filter=FILTERS)
    def subscribe(self, name: str, topic_filter: str) -> None:
        if name in self.sessions:
            self.sessions[name].subscribe([topic_filter])
            self.say(name, Subscribe(7, ((topic_filter, 1),)))

    @rule(name=CLIENTS, topic_filter=FILTERS)
    def unsubscribe(self, name: str, topic_filter: str) -> None:
        if name in self.sessions:
            self.sessions[name].unsubscribe([topic_filter])
            self.say(name, Unsubscribe(7, (topic_filter,)))

    @rule(name=CLIENTS)
    def leave(self, name: str) -> None:
        if name in self.sessions:
            self.sessions.pop(name).disconnect()
            self.say(name, Disconnect())
            del self.connections[name]

    @rule(name=CLIENTS)
    def vanish(self, name: str) -> None:
        if name in self.sessions:
            self.sessions.pop(name).vanish()
            self.tell(ConnectionLost(self.connections.pop(name)))
            self.clock.run()

    @invariant()
    def both_say_the_same(self) -> None:
        assert self.ours == self.theirs
        assert self.acks == self.their_acks


TestTwins = Twins.TestCase
