"""MQTT under asyncio: one connection that is kept, and one ordered stream of what happens on it.

    async with Connection(settings, client_id="dev-1", will=will) as connection:
        await connection.subscribe(["fedmq/v1/home/coordinator/#"])
        async for event in connection.events():
            match event:
                case Connected(): ...       # again after every reconnection: send what has no receipt
                case Message(): ...         # acknowledged to the broker when the next event is asked for
                case Disconnected(): ...    # reason, and when it tries again

paho-mqtt does the packets, `aio_wire` the bytes, `aio_session` one connection from CONNECT to its end; this module
keeps a session up and its promises: clean sessions, subscriptions restored before `Connected` is handed out, MQTT 5
first and 3.1.1 where that is all the broker knows, and back-pressure instead of an unbounded or a dropping queue.

**Back-pressure.** A broker that keeps to MQTT 5 sends at most `receive_maximum` messages before we acknowledge, and
those fit in the inbox. Others send more: when the inbox is full, the connection is not read until the consumer catches
up, and TCP holds the broker back. As acknowledgements come by the same connection, reading goes on, up to four times
the bound, while a `publish` or `subscribe` waits for one: a consumer may publish from within its loop. Where still more
may come at once, publish from another task: an acknowledgement behind all that is only read as the consumer goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Literal, Self

from fedmq_protocol.aio_events import (
    MQTT_3_1_1,
    MQTT_5,
    Connected,
    Disconnected,
    Event,
    Message,
    ProtocolVersion,
    RefusedError,
    Traffic,
    Will,
)
from fedmq_protocol.aio_inbox import Inbox
from fedmq_protocol.aio_reasons import Fault, Reason
from fedmq_protocol.aio_session import AttemptError, Profile, Session
from fedmq_protocol.aio_wire import TrafficMeter
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConnectionFailedError

__all__ = [
    "BrokerSettings",
    "Connected",
    "Connection",
    "Disconnected",
    "Event",
    "Message",
    "RefusedError",
    "Traffic",
    "Will",
]

_log = logging.getLogger(__name__)

_PACKET_OVERHEAD_BYTES = 16  # fixed header, topic length, packet id, an empty property list
_SETTLED_S = (
    5.0  # a connection that stood so long was a good one: the next failure starts from the shortest wait
)


class Connection:
    """A connection to a broker that is made again whenever it is lost.

    Args:
        settings: where the broker is, credentials, limits and times.
        client_id: unique among the broker's clients: a second one with the same id throws the first one out.
        will: the last will, or what makes one at each connection, so that it can carry a new session epoch.
        receive_maximum: how many messages the broker may send before we acknowledge; with the packet limit it bounds
            the inbox.
        rng: where the jitter of the reconnections comes from.
        flush_timeout_s: how long `stop` waits for what is being published.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        client_id: str,
        will: Callable[[], Will] | Will | None = None,
        receive_maximum: int = 20,
        rng: random.Random | None = None,
        flush_timeout_s: float = 2.0,
    ) -> None:
        self.settings = settings
        self.client_id = client_id
        self._will = will
        self._meter = TrafficMeter()
        self._profile = Profile(settings, client_id, receive_maximum, self._meter)
        self._rng = random.Random() if rng is None else rng  # noqa: S311  # jitter, not a secret
        self._flush_timeout_s = flush_timeout_s
        self._filters: dict[str, int] = {}
        self._session: Session | None = None
        self._usable = False  # the session is open, and its subscriptions are restored
        self._works: ProtocolVersion | None = None
        self._last_reason: str | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._stopped = asyncio.Event()
        self._inbox = Inbox(receive_maximum * settings.max_packet_bytes)
        self._consumed = False

    # ------------------------------------------------------------------------------ life

    async def start(self, *, wait: bool = False, timeout_s: float = 0.0) -> None:
        """Begin to connect, and keep at it until `stop`.

        Args:
            wait: return once connected, for commands that must fail rather than wait.
            timeout_s: how long `wait` bears failures that may pass; a refusal is raised at once.

        Raises:
            ConnectionFailedError: with `wait`, when the broker cannot be reached or refuses us; the text names the fix,
                and the connection is stopped.
        """
        assert self._keeper is None, "a connection is started once"
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        self._keeper = asyncio.create_task(self._keep(give_up_at=loop.time() + timeout_s if wait else None))
        self._keeper.add_done_callback(self._keeper_ended)
        if not wait:
            return
        try:
            await asyncio.shield(self._first)
        except BaseException:
            await self.stop(graceful=False)
            raise

    async def stop(self, *, graceful: bool = True) -> None:
        """End the connection and the stream of events. A second call does nothing.

        Args:
            graceful: send what is being published, within the time limit, and take leave, so that the last will does
                not fire; otherwise vanish, and the broker publishes it.
        """
        if self._stopped.is_set():
            return
        self._stopped.set()
        session, self._usable = self._session, False
        if session is not None:
            if graceful:
                await session.close(self._flush_timeout_s)
            session.abort()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._first is not None and not self._first.done():
            self._first.cancel()
        self._inbox.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(graceful=error is None or isinstance(error, asyncio.CancelledError))

    def reconnect(self) -> None:
        """Drop the connection, and make another one, with a new last will."""
        if self._session is not None:
            self._session.abort()

    # ------------------------------------------------------------------------------ what it knows

    @property
    def is_connected(self) -> bool:
        """Whether messages can be published now."""
        return self._usable

    @property
    def last_failure(self) -> str | None:
        """Why the latest attempt or connection ended; None while connected."""
        return None if self._usable else self._last_reason

    @property
    def traffic(self) -> Traffic:
        """Bytes on the wire since the start, over all reconnections."""
        return Traffic(self._meter.bytes_sent, self._meter.bytes_received)

    # ------------------------------------------------------------------------------ events

    async def events(self) -> AsyncIterator[Event]:
        """Everything that happens, in order, until `stop`. There is one stream and one consumer.

        A message is acknowledged when the next event is asked for, unless the consumer did so before.
        """
        assert not self._consumed, "the stream of events has one consumer"
        self._consumed = True
        try:
            while (event := await self._inbox.take()) is not None:
                if isinstance(event, Message):
                    self._adjust_flow()
                yield event
                if isinstance(event, Message):
                    event.ack()
        finally:
            self._consumed = False

    # ------------------------------------------------------------------------------ requests

    async def subscribe(self, filters: Sequence[str], qos: Literal[0, 1] = 1) -> None:
        """Subscribe now and after every reconnection, until `unsubscribe`.

        It returns once the broker has granted the filters, or at once where there is no connection: then they are
        asked for before the next `Connected`, which names those that the broker refuses.

        Raises:
            RefusedError: the broker refuses a filter; that filter is forgotten.
            ValueError: a filter breaks the rules of MQTT (section 4.7).
        """
        for topic_filter in filters:
            _check_filter(topic_filter)
        self._filters |= dict.fromkeys(filters, qos)
        session = self._open_session()
        if session is None:
            return
        try:
            refused = await session.subscribe(list(filters), qos)
        except ConnectionFailedError:
            return  # restored with the next connection
        if refused:
            for topic_filter in refused:
                self._filters.pop(topic_filter, None)
            raise RefusedError(
                "the broker refuses to subscribe us: "
                + ", ".join(f"{topic_filter!r} ({reason})" for topic_filter, reason in refused.items())
            )

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions, now and for later connections."""
        known = [
            topic_filter for topic_filter in filters if self._filters.pop(topic_filter, None) is not None
        ]
        session = self._open_session()
        if session is not None and known:
            with contextlib.suppress(ConnectionFailedError):
                await session.unsubscribe(known)

    async def publish(
        self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False
    ) -> None:
        """Publish; return once the broker has acknowledged it (QoS 1), or the system has taken it (QoS 0).

        It waits while twenty messages or 256 KB are under way. An acknowledgement is no receipt: brokers acknowledge
        messages that they then drop.

        Raises:
            ConnectionFailedError: there is no connection, or it was lost before the acknowledgement. Whether the
                message arrived is then unknown; the caller sends it again after the next `Connected`.
            RefusedError: the broker refuses the message (MQTT 5 only).
            ValueError: the packet is larger than our limit or the broker's.
        """
        session = self._open_session()
        if session is None:
            raise ConnectionFailedError(self._last_reason or f"not connected to {self.settings.address} yet")
        packet_bytes = len(topic.encode()) + len(payload) + _PACKET_OVERHEAD_BYTES
        broker_limit = session.connected.max_packet_bytes
        limit = min(self.settings.max_packet_bytes, broker_limit or self.settings.max_packet_bytes)
        if packet_bytes > limit:
            whose = "the broker's limit" if limit == broker_limit else "max_packet_bytes"
            raise ValueError(f"a packet of {packet_bytes} bytes for {topic!r} is above {whose} of {limit}")
        await session.publish(topic, payload, qos=qos, retain=retain)

    def _open_session(self) -> Session | None:
        return self._session if self._usable else None

    # ------------------------------------------------------------------------------ keeping it up

    async def _keep(self, *, give_up_at: float | None) -> None:
        loop = asyncio.get_running_loop()
        assert self._first is not None
        failures = 0
        while True:
            try:
                session, connected = await self._connect()
            except AttemptError as error:
                reason, stood_s = error.reason, 0.0
            else:
                since = loop.time()
                self._last_reason = None
                if not self._first.done():
                    self._first.set_result(None)
                reason = await self._serve(session, connected)
                stood_s = loop.time() - since
            if self._stopped.is_set():
                return
            failures = 0 if stood_s > _SETTLED_S else failures + 1
            delay_s = self._delay(failures, reason)
            hopeless = reason.fault is Fault.REFUSED or (
                give_up_at is not None and loop.time() + delay_s > give_up_at
            )
            if give_up_at is not None and hopeless and not self._first.done():
                self._first.set_exception(ConnectionFailedError(reason.text))
                return
            if reason.text != self._last_reason:
                self._last_reason = reason.text
                _log.info("%s: %s; trying again in %.1f s", self.client_id, reason.text, delay_s)
                self._inbox.put(
                    Disconnected(reason.text, permanent=reason.fault is Fault.REFUSED, retry_in_s=delay_s)
                )
            await asyncio.sleep(delay_s)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """A bug, such as a will that cannot be made, must not end in silence: whoever waits gets the exception."""
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None:
            if self._session is not None:
                self._session.abort()
            if self._first is not None and not self._first.done():
                self._first.set_exception(error)
                self._first.exception()  # seen, even if nobody waits
            self._inbox.close(error)

    def _delay(self, failures: int, reason: Reason) -> float:
        """Exponential, with jitter: after a broker's restart a fleet must not come back in step."""
        longest = self.settings.reconnect_max_s
        if reason.fault is Fault.REFUSED:
            mean = longest / 1.5
        else:
            mean = min(longest / 1.5, self.settings.reconnect_min_s * 2.0 ** min(failures, 30))
        return mean * self._rng.uniform(0.5, 1.5)

    async def _connect(self) -> tuple[Session, Connected]:
        """Open a session in MQTT 5, or in 3.1.1 where the broker knows no other, and restore the subscriptions.

        Some old brokers say so, some close the connection, and some never answer. Once a version has worked, silence
        means trouble, not the wrong version.
        """
        versions = self._versions()
        for version in versions:
            session = Session(self._profile, version, deliver=self._deliver, waits_changed=self._adjust_flow)
            self._session = session
            self._inbox.hold()
            try:
                await session.open(self._will() if callable(self._will) else self._will)
                connected = await self._restore(session)
            except AttemptError as error:
                self._inbox.forget_held()
                may_be_version = error.reason.fault is Fault.WRONG_VERSION or (
                    error.reason.fault is Fault.NO_ANSWER and self._works != version
                )
                if version == versions[-1] or not may_be_version:
                    raise
            else:
                self._works = version
                return session, connected
        raise AssertionError("there is always a last version")

    def _versions(self) -> Sequence[ProtocolVersion]:
        match self.settings.protocol:
            case "5":
                return (MQTT_5,)
            case "3.1.1":
                return (MQTT_3_1_1,)
            case "auto":
                return (MQTT_3_1_1, MQTT_5) if self._works == MQTT_3_1_1 else (MQTT_5, MQTT_3_1_1)

    async def _restore(self, session: Session) -> Connected:
        refused: dict[str, str] = {}
        try:
            for qos in (0, 1):
                filters = [topic_filter for topic_filter, wanted in self._filters.items() if wanted == qos]
                refused |= await session.subscribe(filters, qos)
        except ConnectionFailedError:
            raise AttemptError(session.ended.result()) from None
        except BaseException:
            session.abort()
            raise
        for topic_filter, why in refused.items():
            self._filters.pop(topic_filter, None)
            _log.warning(
                "%s: the broker refuses the subscription to %s: %s", self.client_id, topic_filter, why
            )
        told = session.connected
        return Connected(told.session_present, told.protocol, told.max_packet_bytes, tuple(refused))

    async def _serve(self, session: Session, connected: Connected) -> Reason:
        """Hand out `Connected`, then what came with the restored subscriptions; return when the session is over."""
        self._usable = not session.ended.done()
        self._inbox.announce(connected)
        try:
            return await asyncio.shield(session.ended)
        finally:
            self._usable = False

    # ------------------------------------------------------------------------------ the inbox

    def _deliver(self, message: Message) -> None:
        self._inbox.put(message)
        if self._inbox.overfull and self._session is not None:
            self._inbox.announce(
                self._session.connected
            )  # more was retained than we can hold before the announcement
        self._adjust_flow()

    def _adjust_flow(self) -> None:
        if self._session is not None:
            full, overfull = self._inbox.full, self._inbox.overfull
            self._session.set_paused(paused=overfull or (full and not self._session.waits))


def _check_filter(topic_filter: str) -> None:
    levels = topic_filter.split("/")
    misplaced = any(level not in {"+", "#"} and ("+" in level or "#" in level) for level in levels)
    if not topic_filter or misplaced or "#" in levels[:-1] or "\0" in topic_filter:
        raise ValueError(f"{topic_filter!r} is no topic filter")
