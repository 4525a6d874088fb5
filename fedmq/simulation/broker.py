"""An MQTT broker at the level of messages, in memory, under a virtual clock.

What holds, as with Mosquitto and clean sessions: exact filters and wildcards; QoS 1 with a PUBACK; retained messages;
last wills; packets of one connection in order; for each client a window of messages under way and a queue behind it,
and from a full queue a message is dropped although its publisher was told that it had arrived. The broker never sends
anything twice by itself: that takes a connection that is resumed, and sessions here are clean.

What goes wrong is the `Network`'s to say, packet by packet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

from fedmq.simulation.network import Fate, Network, Way
from fedmq.simulation.retained import Retained
from fedmq_broker.embedded.topics import Subscriptions

Action: TypeAlias = Callable[[], None]


class Clock(Protocol):
    """Virtual time, and what is to happen in it."""

    @property
    def now(self) -> float:
        """Seconds; never less than before."""
        ...

    def at(self, when: float, action: Action) -> object:
        """Have `action` done at `when`; what is set for one moment happens in the order in which it was set."""
        ...


@dataclass(frozen=True)
class Limits:
    """Of the broker, by client.

    Attributes:
        inflight: messages under way to it (Mosquitto's `max_inflight_messages`).
        queued: messages that wait behind those; what goes beyond is dropped (`max_queued_messages`).
        packet_bytes: of a payload; a larger one ends its publisher's connection (`max_packet_size`).
    """

    inflight: int = 20
    queued: int = 1_000
    packet_bytes: int = 2_000_000


class Will(NamedTuple):
    """What is published when a connection ends otherwise than by `Session.disconnect`."""

    topic: str
    payload: bytes
    retain: bool = True


class Arrived(NamedTuple):
    """A message came. `retained`: it stood there before the subscription."""

    topic: str
    payload: bytes
    retained: bool


class Closed(NamedTuple):
    """The connection has ended; nothing more comes."""

    reason: str


_WHOLE: Final = Fate()[1:]
Event: TypeAlias = Arrived | Closed
OnEvent: TypeAlias = Callable[[Event], None]
Early: TypeAlias = Callable[["Arrived", float], bool]


class Session:
    """One connection of one client, as `Broker.connect` makes it. After its end nothing that it is told matters."""

    __slots__ = (
        "_broker",
        "_down_after",
        "_up_after",
        "alive",
        "client_id",
        "early",
        "filters",
        "on_event",
        "queue",
        "under_way",
        "will",
    )

    def __init__(self, broker: Broker, client_id: str, will: Will | None, on_event: OnEvent) -> None:
        self._broker = broker
        self.client_id, self.will, self.on_event = client_id, will, on_event
        self.early: Early | None = None
        """Asked of what would arrive whole and once, and when, if it takes that now: then nothing more happens."""
        self.alive = True
        """As the broker sees it; the client learns of the end by `Closed`, later."""
        self.filters: dict[str, None] = {}
        self.queue: deque[Arrived] = deque()
        self.under_way = 0
        self._up_after = self._down_after = 0.0

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, on_ack: Action | None = None
    ) -> None:
        """Send a message with QoS 1; `on_ack` is called when its PUBACK comes, and never if none does.

        An empty `payload` with `retain` clears the topic.
        """
        if not self.alive:
            return
        broker = self._broker
        fate = broker.network.fate(self.client_id, "up", topic, payload)
        message = Arrived(topic, payload, retain)
        broker.clock.at(self.arrival(fate, "up"), lambda: broker.publish(self, message, fate, on_ack))

    def subscribe(self, filters: Iterable[str], on_ack: Action | None = None) -> None:
        """Subscribe with QoS 1. What is retained comes behind the acknowledgement."""
        wanted = tuple(filters)
        self._behind_all(lambda: self._broker.subscribe(self, wanted, on_ack))

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Hear no more of them, once the broker knows."""
        unwanted = tuple(filters)
        self._behind_all(lambda: self._broker.unsubscribe(self, unwanted))

    def disconnect(self) -> None:
        """Take leave: what was sent before still arrives, and no last will does. The client hears no more."""
        self.on_event = _deaf
        self._behind_all(lambda: self._broker.end(self, "it took leave", with_will=False))

    def vanish(self) -> None:
        """The client's power or line goes: what is under way either way is lost, and its last will comes."""
        self.on_event = _deaf
        self._broker.end(self, "it vanished")

    def arrival(self, fate: Fate, way: Way) -> float:
        """When a packet sent now arrives."""
        when = self._broker.clock.now + fate.delay_s
        if fate.overtakes:
            return when
        if way == "up":
            self._up_after = when = max(when, self._up_after)
        else:
            self._down_after = when = max(when, self._down_after)
        return when

    def _behind_all(self, action: Action) -> None:
        if self.alive:
            fate = Fate(self._broker.network.latency_s(self.client_id))
            self._broker.clock.at(self.arrival(fate, "up"), action)


class Broker:
    """The broker.

    Args:
        clock: when packets arrive.
        network: what becomes of them.
        limits: of each client.
    """

    def __init__(self, clock: Clock, network: Network, limits: Limits | None = None) -> None:
        self.clock, self.network = clock, network
        self.limits = Limits() if limits is None else limits
        self.up = True
        self.num_dropped = 0
        """Messages that a full queue had no room for."""
        self.retained = Retained()
        self._sessions: dict[str, Session] = {}
        self._subscriptions: Subscriptions[Session] = Subscriptions()
        self._hearers: dict[str, tuple[Session, ...]] = {}
        """Who subscribes to a topic, as found before; forgotten when a subscription changes that may matter to it."""
        self._wills: dict[str, Will] = {}
        self._life = 0

    # ------------------------------------------------------------------------------ from outside

    def connect(self, client_id: str, will: Will | None, on_event: OnEvent) -> Session | None:
        """Take a client, in place of an earlier connection of the same one.

        Args:
            client_id: who it is.
            will: what is published when the connection ends otherwise than by taking leave.
            on_event: told of every message, and of the end.

        Returns:
            The session, which is clean; None: the broker is down.
        """
        if not self.up:
            return None
        if client_id in self._sessions:
            self.end(self._sessions[client_id], "its client id connected again")
        if client_id in self._wills:
            self._publish_will(self._wills.pop(client_id))
        session = self._sessions[client_id] = Session(self, client_id, will, on_event)
        return session

    def cut(self, client_id: str) -> None:
        """End a client's connection; its last will is published."""
        session = self._sessions.get(client_id)
        if session is not None:
            self.end(session, "the connection was cut")

    def stop(self, *, keep_retained: bool) -> None:
        """Kill it: every connection ends, what is under way is lost, and no last will is published.

        Args:
            keep_retained: it has a disk, and had saved.
        """
        self.up = False
        self._life += 1
        for session in list(self._sessions.values()):
            self.end(session, "the broker is gone", with_will=False)
        self._wills.clear()
        if not keep_retained:
            self.retained.clear()

    def start(self) -> None:
        """Take clients again."""
        self.up = True

    def restart(self, *, keep_retained: bool) -> None:
        """Kill it, and start it at once."""
        self.stop(keep_retained=keep_retained)
        self.start()

    # ------------------------------------------------------------------------------ what sessions send

    def publish(self, session: Session, message: Arrived, fate: Fate, on_ack: Action | None) -> None:
        """A message has come up."""
        if not session.alive:
            return
        if len(message.payload) > self.limits.packet_bytes:
            self.end(session, f"a packet of {len(message.payload)} bytes")
            return
        if fate.loss != "packet":
            if fate.loss != "routing":
                for _ in range(fate.copies):
                    self.route(message)
            if fate.loss != "ack" and on_ack is not None:
                acknowledged = on_ack  # for the closure: not None
                self._tell_later(session, lambda: acknowledged() if session.alive else None)
        if fate.cuts:
            self.end(session, "the connection was cut")

    def subscribe(self, session: Session, filters: tuple[str, ...], on_ack: Action | None) -> None:
        """A SUBSCRIBE has come up."""
        if not session.alive:
            return
        for topic_filter in filters:
            session.filters[topic_filter] = None
            self._subscriptions.add(topic_filter, session, 1)
        self._forget_hearers(filters)
        if on_ack is not None:
            acknowledged = on_ack
            self._tell_later(session, lambda: acknowledged() if session.alive else None)
        for topic_filter in filters:
            for topic, payload in self.retained.matching(topic_filter):
                self._deliver(session, Arrived(topic, payload, retained=True))

    def unsubscribe(self, session: Session, filters: tuple[str, ...]) -> None:
        """An UNSUBSCRIBE has come up."""
        if session.alive:
            for topic_filter in filters:
                if topic_filter in session.filters:
                    del session.filters[topic_filter]
                    self._subscriptions.remove(topic_filter, session)
            self._forget_hearers(filters)

    def _forget_hearers(self, filters: Iterable[str]) -> None:
        for topic_filter in filters:
            if "+" in topic_filter or "#" in topic_filter:
                self._hearers.clear()
            else:
                self._hearers.pop(topic_filter, None)

    def end(self, session: Session, reason: str, *, with_will: bool = True) -> None:
        """End a connection."""
        if not session.alive:
            return
        session.alive = False
        del self._sessions[session.client_id]
        for topic_filter in session.filters:
            self._subscriptions.remove(topic_filter, session)
        self._forget_hearers(session.filters)
        session.queue.clear()
        self._tell_later(session, lambda: session.on_event(Closed(reason)))
        if with_will and session.will is not None:
            self._will_later(session.client_id, session.will)

    # ------------------------------------------------------------------------------ messages

    def route(self, message: Arrived) -> None:
        """Keep a message if it is to be retained, and pass it on to whoever subscribes."""
        topic, payload, retain = message
        if retain:
            self.retained.put(topic, payload)
        live = Arrived(
            topic, payload, retained=False
        )  # section 3.3.1.3: so it is for those who subscribed before
        hearers = self._hearers.get(topic)
        if hearers is None:
            hearers = self._hearers[topic] = tuple(self._subscriptions.matching(topic))
        for session in hearers:
            self._deliver(session, live)

    def _deliver(self, session: Session, message: Arrived) -> None:
        if session.under_way < self.limits.inflight:
            self._send(session, message)
        elif len(session.queue) < self.limits.queued:
            session.queue.append(message)
        else:
            self.num_dropped += 1

    def _send(self, session: Session, message: Arrived) -> None:
        fate = self.network.fate(session.client_id, "down", message.topic, message.payload)
        when = session.arrival(fate, "down")
        if session.early is not None and fate[1:] == _WHOLE and session.early(message, when):
            return
        session.under_way += 1
        self.clock.at(when, lambda: self._arrive(session, message, fate))

    def _arrive(self, session: Session, message: Arrived, fate: Fate) -> None:
        """A message is there. The acknowledgement takes no time: it would only keep the window's place a little."""
        if not session.alive:
            return
        session.under_way -= 1
        while session.queue and session.under_way < self.limits.inflight:
            self._send(session, session.queue.popleft())
        if not fate.loss:
            for _ in range(fate.copies):
                session.on_event(message)
        if fate.cuts:
            self.end(session, "the connection was cut")

    # ------------------------------------------------------------------------------ later

    def _tell_later(self, session: Session, action: Action) -> None:
        fate = Fate(self.network.latency_s(session.client_id))
        self.clock.at(session.arrival(fate, "down"), action)

    def _will_later(self, client_id: str, will: Will) -> None:
        fate = self.network.will(client_id)
        if fate is None:
            return
        if not fate.outlives:
            self._wills[client_id] = will
        life = self._life

        def due() -> None:
            if fate.outlives:
                if self._life == life:
                    self._publish_will(will)
            elif self._wills.get(client_id) is will:
                del self._wills[client_id]
                self._publish_will(will)

        self.clock.at(self.clock.now + fate.delay_s, due)

    def _publish_will(self, will: Will) -> None:
        self.route(Arrived(will.topic, will.payload, will.retain))


def _deaf(event: Event) -> None:
    """For the client that is not there any more."""
