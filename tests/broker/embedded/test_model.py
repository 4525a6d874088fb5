"""The broker's rules, as lists of effects; no socket, no clock."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedmq_broker.embedded.model import (
    REFUSED_FILTER,
    BrokerModel,
    CloseConnection,
    ConnectionLost,
    ConnectionOpened,
    DeadlinePassed,
    Effect,
    Limits,
    PacketArrived,
    SendPacket,
)
from fedmq_broker.embedded.packets import (
    Connack,
    Connect,
    Disconnect,
    FromClient,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)


def connected(
    model: BrokerModel, connection: int, packet: Connect | None = None, *, now: float = 0.0
) -> None:
    model.handle(ConnectionOpened(connection), now=now)
    effects = model.handle(PacketArrived(connection, packet or Connect(client_id=f"c{connection}")), now=now)
    assert effects[-1] == SendPacket(connection, Connack(0))


def send(model: BrokerModel, connection: int, packet: FromClient, *, now: float = 0.0) -> list[Effect]:
    return model.handle(PacketArrived(connection, packet), now=now)


def subscribed(model: BrokerModel, connection: int, topic_filter: str, qos: int = 1) -> None:
    assert send(model, connection, Subscribe(1, ((topic_filter, qos),)))[0] == SendPacket(
        connection, Suback(1, (min(qos, 1),))
    )


def test_a_message_is_acknowledged_and_passed_on() -> None:
    model = BrokerModel()
    connected(model, 1)
    connected(model, 2)
    subscribed(model, 2, "m")
    assert send(model, 1, Publish("m", b"x", 1, packet_id=9)) == [
        SendPacket(1, Puback(9)),
        SendPacket(2, Publish("m", b"x", 1, packet_id=1)),
    ]


def test_the_lower_qos_of_the_two_holds() -> None:
    model = BrokerModel()
    for connection, qos in ((1, 1), (2, 0)):
        connected(model, connection)
        subscribed(model, connection, "m", qos)
    connected(model, 3)
    assert send(model, 3, Publish("m", b"x")) == [
        SendPacket(1, Publish("m", b"x")),
        SendPacket(2, Publish("m", b"x")),
    ]
    assert send(model, 3, Publish("m", b"x", 1, packet_id=1))[1:] == [
        SendPacket(1, Publish("m", b"x", 1, packet_id=1)),
        SendPacket(2, Publish("m", b"x")),
    ]


def test_overlapping_filters_deliver_once_at_the_higher_qos() -> None:
    model = BrokerModel()
    connected(model, 1)
    subscribed(model, 1, "a/+", 0)
    subscribed(model, 1, "a/b", 1)
    subscribed(model, 1, "#", 0)
    assert send(model, 1, Publish("a/b", b"", 1, packet_id=1)) == [
        SendPacket(1, Puback(1)),
        SendPacket(1, Publish("a/b", b"", 1, packet_id=1)),
    ]


def test_the_window_holds_messages_back_in_order() -> None:
    model = BrokerModel(Limits(inflight=2))
    connected(model, 1)
    subscribed(model, 1, "m")
    connected(model, 2)
    sent = [send(model, 2, Publish("m", b"%d" % number, 1, packet_id=1))[1:] for number in range(4)]
    assert [len(effects) for effects in sent] == [1, 1, 0, 0]
    # A message at QoS 0 does not overtake the ones before it.
    assert send(model, 2, Publish("m", b"late")) == []
    assert send(model, 1, Puback(2)) == [SendPacket(1, Publish("m", b"2", 1, packet_id=3))]
    assert send(model, 1, Puback(2)) == []  # not under way: no credit
    assert send(model, 1, Puback(1)) == [
        SendPacket(1, Publish("m", b"3", 1, packet_id=4)),
        SendPacket(1, Publish("m", b"late")),
    ]


def test_packet_ids_wrap_and_pass_over_those_under_way() -> None:
    model = BrokerModel(Limits(inflight=2))
    connected(model, 1)
    subscribed(model, 1, "m")
    send(model, 1, Publish("m", b"", 1, packet_id=1))  # 1 stays under way
    seen = set()
    for _ in range(65_535):
        [_, effect] = send(model, 1, Publish("m", b"", 1, packet_id=1))
        assert isinstance(effect, SendPacket)
        assert isinstance(effect.packet, Publish)
        seen.add(effect.packet.packet_id)
        send(model, 1, Puback(effect.packet.packet_id))
    assert seen == set(range(2, 65_536))


def test_who_reads_too_slowly_is_disconnected_and_its_will_told() -> None:
    model = BrokerModel(Limits(inflight=1, queued_bytes=1_000))
    connected(model, 1, Connect(client_id="slow", will=Publish("will", b"gone")))
    connected(model, 2)
    subscribed(model, 1, "m")
    subscribed(model, 2, "#", 0)
    publish = Publish("m", bytes(300), 1, packet_id=1)
    for _ in range(2):
        send(model, 2, publish)
    effects = send(model, 2, publish)
    assert CloseConnection(1, "it reads too slowly") in effects
    assert SendPacket(2, Publish("will", b"gone")) in effects
    assert effects.count(SendPacket(2, Publish("m", bytes(300)))) == 1
    assert send(model, 1, Pingreq()) == []  # it is forgotten


def test_retained_messages_come_marked_at_the_lower_qos_and_after_the_suback() -> None:
    model = BrokerModel()
    connected(model, 1)
    send(model, 1, Publish("a/1", b"old", retain=True))
    send(model, 1, Publish("a/1", b"new", 1, retain=True, packet_id=1))
    send(model, 1, Publish("a/2", b"zero", retain=True))
    assert send(model, 1, Subscribe(5, (("a/+", 1),))) == [
        SendPacket(1, Suback(5, (1,))),
        SendPacket(1, Publish("a/1", b"new", 1, retain=True, packet_id=1)),
        SendPacket(1, Publish("a/2", b"zero", 0, retain=True)),
    ]
    send(model, 1, Publish("a/1", b"", retain=True))
    assert send(model, 1, Subscribe(6, (("a/1", 1),))) == [SendPacket(1, Suback(6, (1,)))]


def test_what_is_retained_is_bounded_and_counted_down() -> None:
    model = BrokerModel(Limits(retained_bytes=100))
    connected(model, 1)
    for _ in range(5):
        assert send(model, 1, Publish("a", bytes(90), retain=True)) == []
    send(model, 1, Publish("a", b"", retain=True))
    assert send(model, 1, Publish("b", bytes(100), retain=True)) == []
    assert send(model, 1, Publish("c", b"x", retain=True)) == [
        CloseConnection(1, "more retained messages than fit")
    ]


def test_bad_filters_are_refused_one_by_one() -> None:
    model = BrokerModel(Limits(filters=2))
    connected(model, 1)
    effects = send(model, 1, Subscribe(1, (("a", 0), ("a+", 0), ("b", 2), ("c", 1), ("a", 1))))
    assert effects == [SendPacket(1, Suback(1, (0, REFUSED_FILTER, 1, REFUSED_FILTER, 1)))]


def test_unsubscribing_ends_it_and_is_always_answered() -> None:
    model = BrokerModel()
    connected(model, 1)
    subscribed(model, 1, "m", 0)
    assert send(model, 1, Unsubscribe(3, ("m", "never"))) == [SendPacket(1, Unsuback(3))]
    assert send(model, 1, Publish("m", b"")) == []


WILL = Publish("will", b"gone", retain=True)


@pytest.mark.parametrize(
    ("last_words", "told"), [(Disconnect(), False), (Connect(client_id="again"), True), (None, True)]
)
def test_a_will_is_published_unless_the_client_took_leave(
    last_words: FromClient | None, *, told: bool
) -> None:
    model = BrokerModel()
    connected(model, 1, Connect(client_id="d", will=WILL))
    connected(model, 2)
    subscribed(model, 2, "will", 0)
    effects = model.handle(ConnectionLost(1), now=1) if last_words is None else send(model, 1, last_words)
    assert (SendPacket(2, Publish("will", b"gone")) in effects) is told
    later = send(model, 2, Subscribe(2, (("will", 0),)))[1:]
    assert later == ([SendPacket(2, Publish("will", b"gone", retain=True))] if told else [])


def test_the_same_client_id_takes_over_and_gets_the_answer_last() -> None:
    model = BrokerModel()
    connected(model, 1, Connect(client_id="same", will=WILL))
    model.handle(ConnectionOpened(2), now=0)
    assert send(model, 2, Connect(client_id="same")) == [
        CloseConnection(1, "its client id connected again"),
        SendPacket(2, Connack(0)),
    ]
    assert model.handle(ConnectionLost(1), now=0) == []
    assert send(model, 2, Pingreq()) == [SendPacket(2, Pingresp())]


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (Connect(level=5), [Connack(1)]),
        (Connect(clean_session=False), [Connack(2)]),
        (Connect(will=Publish("a/+", b"")), []),
        (Pingreq(), []),
    ],
)
def test_who_is_not_let_in(packet: FromClient, answer: list[Connack]) -> None:
    model = BrokerModel()
    model.handle(ConnectionOpened(1), now=0)
    *sent, closed = send(model, 1, packet)
    assert sent == [SendPacket(1, one) for one in answer]
    assert isinstance(closed, CloseConnection)
    assert model.next_deadline() is None


def test_a_topic_with_wildcards_costs_the_connection() -> None:
    model = BrokerModel()
    connected(model, 1)
    assert send(model, 1, Publish("a/#", b"")) == [CloseConnection(1, "a message on a topic with wildcards")]


def test_silence_is_measured_from_the_last_packet() -> None:
    model = BrokerModel(Limits(connect_timeout_s=10))
    model.handle(ConnectionOpened(1), now=0)
    assert model.next_deadline() == 10
    send(model, 1, Connect(client_id="a", keepalive_s=4, will=WILL), now=3)
    assert model.next_deadline() == 9
    send(model, 1, Pingreq(), now=8)
    assert model.next_deadline() == 14
    assert model.handle(DeadlinePassed(), now=13.9) == []
    assert model.handle(DeadlinePassed(), now=14) == [CloseConnection(1, "silent for too long")]
    connected(model, 2, Connect(client_id="forever"), now=14)
    assert model.next_deadline() is None


class Fleet(RuleBasedStateMachine):
    """Clients come and go at random: nobody gets a message twice, out of order, or beyond the window."""

    def __init__(self) -> None:
        super().__init__()
        self.model = BrokerModel(Limits(inflight=3, queued_bytes=3_000))
        self.open: set[int] = set()
        self.under_way: dict[int, list[int]] = {}
        self.last_seen: dict[int, int] = {}
        self.number = 0

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, CloseConnection):
                self.open.discard(effect.connection)
                continue
            assert effect.connection in self.open
            assert isinstance(effect, SendPacket)
            if isinstance(effect.packet, Publish):
                number = int(effect.packet.payload)
                if not effect.packet.retain:
                    assert number > self.last_seen[effect.connection]
                    self.last_seen[effect.connection] = number
                if effect.packet.qos:
                    assert effect.packet.packet_id not in self.under_way[effect.connection]
                    self.under_way[effect.connection].append(effect.packet.packet_id)

    @rule(who=st.integers(0, 4), name=st.sampled_from(["a", "b", "c"]))
    def connect(self, who: int, name: str) -> None:
        if who not in self.open:
            self.model.handle(ConnectionOpened(who), now=0)
            self.open.add(who)
            self.under_way[who], self.last_seen[who] = [], -1
            self.do(send(self.model, who, Connect(client_id=name)))

    @rule(who=st.integers(0, 4), topic_filter=st.sampled_from(["x", "y", "+", "#"]), qos=st.integers(0, 1))
    def subscribe(self, who: int, topic_filter: str, qos: int) -> None:
        if who in self.open:
            self.do(send(self.model, who, Subscribe(1, ((topic_filter, qos),))))

    @rule(
        who=st.integers(0, 4), topic=st.sampled_from(["x", "y"]), qos=st.integers(0, 1), retain=st.booleans()
    )
    def publish(self, who: int, topic: str, qos: int, *, retain: bool) -> None:
        if who in self.open:
            self.number += 1
            payload = b"%d" % self.number
            self.do(send(self.model, who, Publish(topic, payload, qos, retain, packet_id=qos)))

    @rule(who=st.integers(0, 4))
    def acknowledge(self, who: int) -> None:
        if who in self.open and self.under_way[who]:
            self.do(send(self.model, who, Puback(self.under_way[who].pop(0))))

    @rule(who=st.integers(0, 4))
    def vanish(self, who: int) -> None:
        if who in self.open:
            self.open.discard(who)
            self.do(self.model.handle(ConnectionLost(who), now=0))

    @invariant()
    def the_window_holds(self) -> None:
        for who in self.open:
            assert len(self.under_way[who]) <= 3

    @invariant()
    def the_model_knows_who_is_there(self) -> None:
        assert set(self.model._clients) == self.open
        assert {client.connection for client in self.model._by_id.values()} == self.open


TestFleet = Fleet.TestCase
