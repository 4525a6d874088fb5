"""One party's connection to the broker, kept up: `fedmq_protocol.aio.Connection` under virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from fedmq.simulation.broker import Arrived, Broker, Closed, Early, Event, Session, Will
from fedmq.simulation.world import World

ACK_TIMEOUT_S: Final = 60.0
RECONNECT_MIN_S: Final = 0.25
RECONNECT_MAX_S: Final = 30.0
_SETTLED_S: Final = 10.0
_FRAME_BYTES: Final = 8
"""What a PUBLISH has beside its topic and payload, and its acknowledgement, roughly."""
_DOWN: Final = "the broker is down"


class Owner(Protocol):
    """Whose connection it is."""

    def connected(self) -> None:
        """Subscriptions stand; what came with them is told next."""
        ...

    def disconnected(self, reason: str) -> None:
        """Nothing can be sent or heard."""
        ...

    def arrived(self, topic: str, payload: bytes, retained: bool) -> None:  # noqa: FBT001 - as it arrives
        """A message came."""
        ...


class Connection:
    """Connects, and again after a wait that grows with each failure; gives up on a broker that acknowledges nothing.

    Args:
        world: the clock.
        broker: where to.
        client_id: as whom.
        filters: what is subscribed to.
        will: makes the last will of a connection that is about to be made.
        owner: told of what happens.
        chance: for the jitter of the waits.
        early: asked whether it takes a message before that arrives; None: it does not.
    """

    def __init__(
        self,
        world: World,
        broker: Broker,
        client_id: str,
        *,
        filters: Sequence[str],
        will: Callable[[], Will],
        owner: Owner,
        chance: random.Random,
        early: Early | None = None,
    ) -> None:
        self._world, self._broker, self.client_id = world, broker, client_id
        self._filters: dict[str, None] = dict.fromkeys(filters)
        self._will, self._owner, self._chance, self._early = will, owner, chance, early
        self._session: Session | None = None
        self._usable = False
        self._held: list[Arrived] = []
        """What came before the subscriptions stood."""
        self._failures = 0
        self._since = 0.0
        self._closed = False
        self._reason = ""
        self._waits: dict[int, Callable[[], object] | None] = {}
        """What is to be told of each message that has no acknowledgement yet."""
        self._next_wait = 0
        self._progress_at = 0.0
        self._watched = False
        self.sent_bytes = self.received_bytes = 0

    @property
    def is_connected(self) -> bool:
        """Whether anything can be said now."""
        return self._usable

    # ------------------------------------------------------------------------------ keeping it up

    def open(self) -> None:
        """Try to connect, now."""
        if self._closed:
            return
        self._held.clear()
        session: Session | None = None

        def on_event(event: Event) -> None:
            if self._session is session is not None:
                self._on_event(event)

        session = self._session = self._broker.connect(self.client_id, self._will(), on_event)
        if session is None:
            self._failed(_DOWN)
            return
        self._since = self._world.now
        mine = session
        mine.early = None if self._early is None else self._take_early
        mine.subscribe(tuple(self._filters), lambda: self._stands(mine))
        self._world.after(ACK_TIMEOUT_S, lambda: self._never_stood(mine))

    def _stands(self, session: Session) -> None:
        if self._session is not session or self._usable:
            return
        self._usable, self._reason = True, ""
        self._owner.connected()
        held, self._held = self._held, []
        for message in held:
            if self._session is session:
                self._owner.arrived(*message)

    def _never_stood(self, session: Session) -> None:
        if self._session is session and not self._usable:
            session.vanish()
            self._lost("the broker did not answer")

    def _take_early(self, message: Arrived, when: float) -> bool:
        return self._usable and self._early is not None and self._early(message, when)

    def count_received(self, topic: str, payload: bytes) -> None:
        """A message came."""
        self.received_bytes += len(topic) + len(payload) + _FRAME_BYTES

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._lost(event.reason)
            return
        topic, payload, retained = event
        self.count_received(topic, payload)
        if self._usable:
            self._owner.arrived(topic, payload, retained)
        else:
            self._held.append(event)

    def _lost(self, reason: str) -> None:
        self._session, self._usable = None, False
        waits, self._waits = self._waits, {}
        self._failures = 0 if self._world.now - self._since > _SETTLED_S else self._failures
        self._failed(reason)
        for told in waits.values():
            if told is not None:
                told()

    def _failed(self, reason: str) -> None:
        """Say so, unless it was said, and try again later."""
        mean = min(RECONNECT_MAX_S / 1.5, RECONNECT_MIN_S * 2.0**self._failures)
        self._failures += 1
        self._world.after(mean * (0.5 + self._chance.random()), self.open)
        if reason != self._reason:
            self._reason = reason
            self._owner.disconnected(reason)

    def reconnect(self) -> None:
        """Drop the connection, and make another one, with a new last will."""
        session = self._session

        def drop() -> None:
            if self._session is session is not None:
                session.vanish()
                self._lost("we dropped the connection")

        self._world.after(0.0, drop)

    def close(self) -> None:
        """Take leave: what was said still arrives."""
        self._closed = True
        if self._session is not None:
            self._session.disconnect()
        self._session, self._usable = None, False
        self._waits.clear()

    def vanish(self) -> None:
        """The process is gone."""
        self._closed = True
        if self._session is not None:
            self._session.vanish()
        self._session, self._usable = None, False
        self._waits.clear()

    # ------------------------------------------------------------------------------ requests

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        told: Callable[[], object] | None = None,
    ) -> None:
        """Publish with QoS 1.

        Args:
            topic: where to.
            payload: what.
            retain: for whoever subscribes later, too.
            told: called once it is acknowledged, or never will be.
        """
        session = self._session
        if session is None or not self._usable:
            if told is not None:
                self._world.after(0.0, told)
            return
        self.sent_bytes += len(topic) + len(payload) + _FRAME_BYTES
        if not self._waits:
            self._progress_at = self._world.now
        number = self._next_wait
        self._next_wait += 1
        self._waits[number] = told
        self._watch()
        session.publish(topic, payload, retain=retain, on_ack=lambda: self._acknowledged(number))

    def _acknowledged(self, number: int) -> None:
        if number in self._waits:
            self._progress_at = self._world.now
            told = self._waits.pop(number)
            if told is not None:
                told()

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe now, and after every reconnection."""
        self._filters |= dict.fromkeys(filters)
        if self._session is not None and self._usable:
            self._session.subscribe(filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions."""
        known = [topic_filter for topic_filter in filters if topic_filter in self._filters]
        for topic_filter in known:
            del self._filters[topic_filter]
        if self._session is not None and self._usable and known:
            self._session.unsubscribe(known)

    # ------------------------------------------------------------------------------ a broker that does not answer

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            self._world.at(self._progress_at + ACK_TIMEOUT_S, self._look)

    def _look(self) -> None:
        self._watched = False
        if not self._waits or self._session is None:
            return
        if self._world.now - self._progress_at < ACK_TIMEOUT_S:
            self._watch()
            return
        self._session.vanish()
        self._lost(f"the broker acknowledged nothing for {ACK_TIMEOUT_S:g} s")
