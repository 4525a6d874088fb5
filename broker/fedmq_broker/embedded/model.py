"""What the embedded broker does, without a socket or a clock: events in, effects out.

Rules, beside those of MQTT 3.1.1:

- Nothing acknowledged is dropped in silence. A client that reads so slowly that its queue passes the bound is
  disconnected: it notices, comes back and asks for what it misses; its last will tells the others.
- One client's pace never holds up another's: a message is acknowledged once it stands in every subscriber's queue.
- Every session is clean, whatever the client asks for; CONNACK says that there was none before.
- Each client is held to the protocol's access rules by its client id (`access`). What it may not publish is
  acknowledged, as MQTT 3.1.1 wants, and passed on to nobody; what it may not read, it cannot subscribe to.
- The one who connects again under a client id in use replaces the other, whose will is published.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TypeAlias, assert_never

from fedmq_broker.embedded.access import Rights, rights_of
from fedmq_broker.embedded.packets import (
    PROTOCOL_LEVEL,
    Connack,
    Connect,
    Disconnect,
    FromBroker,
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
from fedmq_broker.embedded.topics import Subscriptions, is_filter, is_topic, matches

ConnectionId: TypeAlias = int

ACCEPTED, WRONG_LEVEL, BAD_CLIENT_ID, NOT_AUTHORIZED = 0, 1, 2, 5  # section 3.2.2.3
REFUSED_FILTER = 0x80  # section 3.9.3


@dataclass(frozen=True)
class Limits:
    """What one client may cost.

    Attributes:
        connect_timeout_s: for its first packet.
        inflight: messages under way to it without acknowledgement.
        queued_bytes: messages that wait behind those; beyond it the client is disconnected.
        filters: its subscriptions.
        retained_bytes: what all retained messages may take together; a publisher that goes beyond is disconnected.
    """

    connect_timeout_s: float = 10.0
    inflight: int = 20
    queued_bytes: int = 64 * 1024 * 1024
    filters: int = 1_000
    retained_bytes: int = 512 * 1024 * 1024


# ---------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """Someone connected; who it is, CONNECT will tell."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class PacketArrived:
    """A well-formed packet came."""

    connection: ConnectionId
    packet: FromClient


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The stream ended or broke, or carried a malformed packet."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """`next_deadline` is over."""


Event: TypeAlias = ConnectionOpened | PacketArrived | ConnectionLost | DeadlinePassed

# ---------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Send it, in this order."""

    connection: ConnectionId
    packet: FromBroker


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Send what was said before, then close. The model has forgotten the connection already."""

    connection: ConnectionId
    reason: str


@dataclass(frozen=True, slots=True)
class TellOperator:
    """Somebody tried what it may not do; said once of each client."""

    connection: ConnectionId
    text: str


Effect: TypeAlias = SendPacket | CloseConnection | TellOperator

# ---------------------------------------------------------------------------------------------- state


_NOBODY = Rights(())


@dataclass(eq=False, slots=True)
class _Client:
    connection: ConnectionId
    deadline: float | None
    client_id: str | None = None  # None until CONNECT
    rights: Rights = _NOBODY
    told: bool = False
    silence_s: float | None = None
    will: Publish | None = None
    filters: dict[str, int] = field(default_factory=dict)
    inflight: set[int] = field(default_factory=set)
    queue: deque[Publish] = field(default_factory=deque)
    queued_bytes: int = 0
    last_packet_id: int = 0


class BrokerModel:
    """The broker's state and rules."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = Limits() if limits is None else limits
        self._clients: dict[ConnectionId, _Client] = {}
        self._by_id: dict[str, _Client] = {}
        self._subscriptions: Subscriptions[ConnectionId] = Subscriptions()
        self._retained: dict[str, Publish] = {}
        self._retained_bytes = 0

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """What to do about an event. Events about connections that are closed already have no effect."""
        effects: list[Effect] = []
        match event:
            case ConnectionOpened():
                self._clients[event.connection] = _Client(
                    event.connection, now + self.limits.connect_timeout_s
                )
            case PacketArrived():
                client = self._clients.get(event.connection)
                if client is not None:
                    if client.silence_s is not None:
                        client.deadline = now + client.silence_s
                    self._handle_packet(client, event.packet, effects, now=now)
            case ConnectionLost():
                client = self._clients.get(event.connection)
                if client is not None:
                    self._forget(client, effects)
            case DeadlinePassed():
                for client in [one for one in self._clients.values() if one.deadline is not None]:
                    if client.deadline is not None and client.deadline <= now:
                        self._drop(client, "silent for too long", effects)
            case _:
                assert_never(event)
        return effects

    def next_deadline(self) -> float | None:
        """When the next client will have been silent for too long."""
        return min((one.deadline for one in self._clients.values() if one.deadline is not None), default=None)

    # ------------------------------------------------------------------------------ packets

    def _handle_packet(
        self, client: _Client, packet: FromClient, effects: list[Effect], *, now: float
    ) -> None:
        if client.client_id is None:
            if isinstance(packet, Connect):
                self._connect(client, packet, effects, now=now)
            else:
                self._drop(client, "a packet before CONNECT", effects)
            return
        match packet:
            case Publish():
                self._publish(client, packet, effects)
            case Puback():
                if packet.packet_id in client.inflight:
                    client.inflight.remove(packet.packet_id)
                    self._send_queued(client, effects)
            case Subscribe():
                self._subscribe(client, packet, effects)
            case Unsubscribe():
                for topic_filter in packet.filters:
                    if client.filters.pop(topic_filter, None) is not None:
                        self._subscriptions.remove(topic_filter, client.connection)
                effects.append(SendPacket(client.connection, Unsuback(packet.packet_id)))
            case Pingreq():
                effects.append(SendPacket(client.connection, Pingresp()))
            case Disconnect():
                client.will = None
                self._drop(client, "it took leave", effects)
            case Connect():
                self._drop(client, "a second CONNECT", effects)
            case _:
                assert_never(packet)

    def _connect(self, client: _Client, packet: Connect, effects: list[Effect], *, now: float) -> None:
        if packet.level != PROTOCOL_LEVEL:
            effects.append(SendPacket(client.connection, Connack(WRONG_LEVEL)))
            self._drop(client, "another version of MQTT", effects)
            return
        if not packet.client_id and not packet.clean_session:
            effects.append(SendPacket(client.connection, Connack(BAD_CLIENT_ID)))
            self._drop(client, "a kept session without a client id", effects)
            return
        if packet.will is not None and not is_topic(packet.will.topic):
            self._drop(client, "a last will on a topic with wildcards", effects)
            return
        client_id = packet.client_id or f"anonymous-{client.connection}"
        rights = rights_of(client_id)
        if packet.will is not None and not rights.may_publish(packet.will.topic):
            effects.append(SendPacket(client.connection, Connack(NOT_AUTHORIZED)))
            self._drop(client, f"{client_id} may not leave a last will on {packet.will.topic}", effects)
            return
        if client_id in self._by_id:
            self._drop(self._by_id[client_id], "its client id connected again", effects)
        self._by_id[client_id] = client
        client.client_id, client.will, client.rights = client_id, packet.will, rights
        client.silence_s = packet.keepalive_s * 1.5 if packet.keepalive_s else None  # section 3.1.2.10
        client.deadline = None if client.silence_s is None else now + client.silence_s
        effects.append(SendPacket(client.connection, Connack(ACCEPTED)))

    def _publish(self, client: _Client, packet: Publish, effects: list[Effect]) -> None:
        if not is_topic(packet.topic):
            self._drop(client, "a message on a topic with wildcards", effects)
            return
        if not client.rights.may_publish(packet.topic):
            self._tell(client, f"may not publish on {packet.topic}", effects)
            if packet.qos:
                effects.append(SendPacket(client.connection, Puback(packet.packet_id)))
            return
        if packet.retain and not self._retain(packet):
            self._drop(client, "more retained messages than fit", effects)
            return
        # Acknowledged first: routing may disconnect slow readers, this publisher among them.
        if packet.qos:
            effects.append(SendPacket(client.connection, Puback(packet.packet_id)))
        self._route(packet, effects)

    def _subscribe(self, client: _Client, packet: Subscribe, effects: list[Effect]) -> None:
        granted: list[int] = []
        for topic_filter, wanted in packet.filters:
            known = topic_filter in client.filters
            if not is_filter(topic_filter) or (not known and len(client.filters) >= self.limits.filters):
                granted.append(REFUSED_FILTER)
                continue
            if not client.rights.may_subscribe(topic_filter):
                self._tell(client, f"may not subscribe to {topic_filter}", effects)
                granted.append(REFUSED_FILTER)
                continue
            qos = min(wanted, 1)
            client.filters[topic_filter] = qos
            self._subscriptions.add(topic_filter, client.connection, qos)
            granted.append(qos)
        effects.append(SendPacket(client.connection, Suback(packet.packet_id, tuple(granted))))
        for (topic_filter, _), qos in zip(packet.filters, granted, strict=True):
            if qos != REFUSED_FILTER:
                for message in self._retained_for(topic_filter):
                    self._deliver(client, message, min(qos, message.qos), retain=True, effects=effects)

    def _tell(self, client: _Client, what: str, effects: list[Effect]) -> None:
        if not client.told:
            client.told = True
            effects.append(TellOperator(client.connection, f"{client.client_id} {what}"))

    # ------------------------------------------------------------------------------ messages

    def _retain(self, packet: Publish) -> bool:
        old = self._retained.get(packet.topic)
        growth = len(packet.payload) - (0 if old is None else len(old.payload))
        if self._retained_bytes + growth > self.limits.retained_bytes:
            return False
        self._retained_bytes += growth
        if packet.payload:
            self._retained[packet.topic] = packet
        else:
            self._retained.pop(packet.topic, None)
        return True

    def _retained_for(self, topic_filter: str) -> list[Publish]:
        if "+" not in topic_filter and "#" not in topic_filter:
            return [self._retained[topic_filter]] if topic_filter in self._retained else []
        levels = topic_filter.split("/")
        return [message for topic, message in self._retained.items() if matches(levels, topic.split("/"))]

    def _route(self, packet: Publish, effects: list[Effect]) -> None:
        for connection, qos in self._subscriptions.matching(packet.topic).items():
            client = self._clients.get(connection)
            if client is not None:  # delivering to another may have dropped it
                self._deliver(client, packet, min(qos, packet.qos), retain=False, effects=effects)

    def _deliver(
        self, client: _Client, packet: Publish, qos: int, *, retain: bool, effects: list[Effect]
    ) -> None:
        message = Publish(packet.topic, packet.payload, qos, retain)
        if client.queue or (qos and len(client.inflight) >= self.limits.inflight):
            client.queue.append(message)
            client.queued_bytes += _cost(message)
            if client.queued_bytes > self.limits.queued_bytes:
                self._drop(client, "it reads too slowly", effects)
            return
        self._send(client, message, effects)

    def _send_queued(self, client: _Client, effects: list[Effect]) -> None:
        while client.queue and (not client.queue[0].qos or len(client.inflight) < self.limits.inflight):
            message = client.queue.popleft()
            client.queued_bytes -= _cost(message)
            self._send(client, message, effects)

    def _send(self, client: _Client, message: Publish, effects: list[Effect]) -> None:
        if message.qos:
            packet_id = client.last_packet_id % 65_535 + 1
            while packet_id in client.inflight:
                packet_id = packet_id % 65_535 + 1
            client.last_packet_id = packet_id
            client.inflight.add(packet_id)
            message = replace(message, packet_id=packet_id)
        effects.append(SendPacket(client.connection, message))

    # ------------------------------------------------------------------------------ leaving

    def _drop(self, client: _Client, reason: str, effects: list[Effect]) -> None:
        if client.connection in self._clients:
            effects.append(CloseConnection(client.connection, reason))
            self._forget(client, effects)

    def _forget(self, client: _Client, effects: list[Effect]) -> None:
        """Forget a client, then publish its will: in this order it ends, however wills and queues are tangled."""
        del self._clients[client.connection]
        for topic_filter in client.filters:
            self._subscriptions.remove(topic_filter, client.connection)
        if client.client_id is not None and self._by_id.get(client.client_id) is client:
            del self._by_id[client.client_id]
        if client.will is not None:
            if client.will.retain:
                self._retain(client.will)
            self._route(client.will, effects)


def _cost(message: Publish) -> int:
    return len(message.payload) + 256  # a small message costs more than its payload
