"""One MQTT session from CONNECT to its end: a paho-mqtt client on a wire that the event loop moves.

paho encodes and decodes packets, numbers them, and keeps the connection alive; its callbacks run in the event loop's
own thread, from `loop_read`. A session is used once: a reconnection makes a new one, so that nothing old survives.
Where something of paho's inside is touched, `aio_client` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from paho.mqtt.client import MQTTMessage, WebsocketConnectionError
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedmq_protocol.aio_access import make_tls_context, read_credentials
from fedmq_protocol.aio_client import PahoClient
from fedmq_protocol.aio_events import MQTT_5, Connected, Message, ProtocolVersion, RefusedError, Will
from fedmq_protocol.aio_reasons import (
    Fault,
    Reason,
    explain_failed_connect,
    explain_loss,
    explain_refusal,
    explain_silence,
    explain_websocket,
)
from fedmq_protocol.aio_window import Window
from fedmq_protocol.aio_wire import TrafficMeter, Wire
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConfigError, ConnectionFailedError

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.reasoncodes import ReasonCode

_log = logging.getLogger(__name__)

_FAILURE = 0x80  # reason codes from here on are failures (MQTT 5.0 section 2.4)
_FILTERS_A_PACKET = 8  # AWS IoT takes no more in one SUBSCRIBE
_PUBLISH_WINDOW = 20  # messages without PUBACK; a broker's own receive maximum may be lower
_PUBLISH_WINDOW_BYTES = 262_144
_PACKETS_A_TURN = 64  # then the event loop's other work gets its chance
# Of `ack_timeout_s`: when a broker that leaves something without an answer is pinged, and how long after its answer it
# is pinged once more.
_PING_SHARE = 1 / 6
_PONG_SHARE = 1 / 12


class AttemptError(ConnectionFailedError):
    """A connection did not come about; the reason decides what is tried next."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


@dataclass(frozen=True)
class Profile:
    """Who connects, and what stays the same over reconnections."""

    settings: BrokerSettings
    client_id: str
    receive_maximum: int
    meter: TrafficMeter


class Session:
    """An open MQTT session.

    Attributes:
        connected: what the broker said in its CONNACK.
        ended: resolves to the reason once the session is over.
        waits: how many requests wait for the broker's acknowledgement.
    """

    def __init__(
        self,
        profile: Profile,
        protocol: ProtocolVersion,
        *,
        deliver: Callable[[Message], None],
        waits_changed: Callable[[], None],
    ) -> None:
        self._profile = profile
        self._settings = profile.settings
        self._protocol: ProtocolVersion = protocol
        self._deliver = deliver
        self._waits_changed = waits_changed
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._username: str | None = None
        self._connack: asyncio.Future[Connected] = self._loop.create_future()
        self._publishing: dict[int, tuple[asyncio.Future[None], int]] = {}
        self._asking: dict[int, asyncio.Future[list[int]]] = {}
        self._unacknowledged: dict[int, object] = {}
        self._window = Window(_PUBLISH_WINDOW, _PUBLISH_WINDOW_BYTES)
        self._progress_at = self._loop.time()
        self._watched_at = self._progress_at  # the oldest request, since then or since its last ping or pong
        self._ping = 0  # whose answer is waited for, as `PahoClient.pongs` counts; 0: there is none yet
        self._ping_is_second = False
        self._paused = False
        self._tick: asyncio.TimerHandle | None = None
        self._said: str | None = None
        self._client = self._make_client()
        self.connected = Connected(session_present=False, protocol=protocol, max_packet_bytes=None)
        self.ended: asyncio.Future[Reason] = self._loop.create_future()

    @property
    def waits(self) -> int:
        return len(self._publishing) + len(self._asking) + (not self._connack.done())

    # ------------------------------------------------------------------------------ opening

    async def open(self, will: Will | None) -> None:
        """Connect, and wait for the broker's CONNACK.

        Raises:
            AttemptError: with the reason and what kind of failure it is.
        """
        settings, client = self._settings, self._client
        try:
            self._username, password = read_credentials(settings)
            tls = make_tls_context(settings)
        except ConfigError as error:
            raise AttemptError(Reason(str(error), Fault.REFUSED)) from error
        client.username_pw_set(self._username, password)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        try:
            wire = await Wire.open(
                settings.host,
                settings.port,
                tls=tls,
                timeout_s=settings.connect_timeout_s,
                max_receive_bytes=settings.max_packet_bytes,
                meter=self._profile.meter,
            )
        except OSError as error:
            raise AttemptError(explain_failed_connect(error, settings)) from error
        self._wire = client.wire = wire
        try:
            await self._say_hello()
            wire.start(self._loop, on_readable=self._read, on_broken=self._write_failed)
            self._keep_alive()
            async with asyncio.timeout(settings.connect_timeout_s):
                self.connected = await asyncio.shield(self._connack)
        except TimeoutError:
            self.abort()
            raise AttemptError(explain_silence(settings, closed=False)) from None
        except BaseException:
            self.abort()
            raise

    async def _say_hello(self) -> None:
        """Let paho send CONNECT, after the handshake where there are WebSockets."""
        settings, client = self._settings, self._client
        properties: Properties | None = None
        if self._protocol == MQTT_5:
            properties = Properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = self._profile.receive_maximum
            properties.MaximumPacketSize = settings.max_packet_bytes
            client.connect_async(
                settings.host, settings.port, settings.keepalive_s, clean_start=True, properties=properties
            )
        else:
            client.connect_async(settings.host, settings.port, settings.keepalive_s)
        if not settings.uses_websockets:
            client.reconnect()
            return
        assert self._wire is not None
        self._wire.settimeout(settings.connect_timeout_s)
        handshake = asyncio.create_task(asyncio.to_thread(client.reconnect))  # paho's handshake blocks
        try:
            await asyncio.shield(handshake)
        except (WebsocketConnectionError, OSError) as error:
            raise AttemptError(explain_websocket(error, settings)) from error
        except asyncio.CancelledError:
            self._wire.abort()  # which wakes the thread
            with contextlib.suppress(Exception):
                await handshake
            raise

    def _make_client(self) -> PahoClient:
        client = PahoClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._profile.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if self._protocol == MQTT_5 else MQTTProtocolVersion.MQTTv311,
            transport="websockets" if self._settings.uses_websockets else "tcp",
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = self._settings.connect_timeout_s
        client.max_inflight_messages = 0  # the window is ours
        client.ws_set_options(path=self._settings.path)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.hears = self._hears
        client.on_pong = self._on_pong
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_answer
        client.on_unsubscribe = self._on_answer
        return client

    # ------------------------------------------------------------------------------ asking the broker

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        """Publish, and return once the broker has acknowledged (QoS 1) or the kernel has taken it (QoS 0).

        Raises:
            RefusedError: the broker's PUBACK says no (MQTT 5 only).
            ConnectionFailedError: the session ended first.
        """
        cost = await self._window.acquire(len(payload))
        held = True
        try:
            self._require_open()
            if qos == 0 and self._wire is not None and self._wire.unsent_bytes > _PUBLISH_WINDOW_BYTES:
                await self._wire.drain()
                self._require_open()
            info = self._client.publish(topic, payload, qos=qos, retain=retain)
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise ConnectionFailedError("not published: the connection to the broker is lost")
            if qos == 0:
                if self._wire is not None:
                    await self._wire.drain()
                self._require_open()
                return
            acknowledged = self._loop.create_future()
            held = False  # the acknowledgement gives the room back, even when nobody waits for it any more
            self._note_wait()
            self._publishing[info.mid] = acknowledged, cost
            self._waits_changed()
            await acknowledged
        finally:
            if held:
                self._window.release(cost)

    async def subscribe(self, filters: Sequence[str], qos: int) -> dict[str, str]:
        """Subscribe. Returns those that the broker refuses, each with its reason.

        Raises:
            ConnectionFailedError: the session ended first.
        """
        refused: dict[str, str] = {}
        for batch in _batches(filters):
            self._require_open()
            rc, mid = self._client.subscribe([(topic_filter, qos) for topic_filter in batch])
            codes = await self._answer(rc, mid)
            refused |= {
                topic_filter: _reason_name(code)
                for topic_filter, code in zip(batch, codes, strict=False)
                if code >= _FAILURE
            }
        return refused

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe.

        Raises:
            ConnectionFailedError: the session ended first.
        """
        for batch in _batches(filters):
            self._require_open()
            rc, mid = self._client.unsubscribe(list(batch))
            await self._answer(rc, mid)

    async def _answer(self, rc: MQTTErrorCode, mid: int | None) -> list[int]:
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            self._end(self._loss())  # paho knows of it before the socket's reader does
            raise ConnectionFailedError(self.ended.result().text)
        answered: asyncio.Future[list[int]] = self._loop.create_future()
        self._note_wait()
        if not self._asking:
            self._watch_anew()
        self._asking[mid] = answered
        self._waits_changed()
        return await answered

    def _note_wait(self) -> None:
        if not self.waits:
            self._progress_at = self._loop.time()
            self._watch_anew()

    def _watch_anew(self) -> None:
        self._watched_at, self._ping, self._ping_is_second = self._loop.time(), 0, False

    def _require_open(self) -> None:
        if self.ended.done():
            raise ConnectionFailedError(self.ended.result().text)

    # ------------------------------------------------------------------------------ flow

    def set_paused(self, *, paused: bool) -> None:
        """Stop or go on reading; what is acknowledged and published still goes out."""
        if self._wire is None or paused == self._paused:
            return
        self._paused = paused
        self._progress_at = self._loop.time()  # what we did not read cannot be held against the broker
        if paused:
            self._wire.pause()
        else:
            self._wire.resume()

    def _acknowledge(self, mid: int, token: object) -> None:
        # The broker may use the number again once it is acknowledged: the token tells the two messages apart.
        if self._unacknowledged.get(mid) is token and not self.ended.done():
            del self._unacknowledged[mid]
            self._client.ack(mid, qos=1)

    def _read(self) -> None:
        wire, client = self._wire, self._client
        assert wire is not None
        try:
            for _ in range(_PACKETS_A_TURN):
                if not wire.readable:
                    return
                client.loop_read()
        except Exception as error:  # noqa: BLE001  # whatever a hostile packet makes paho raise
            _log.warning("a packet from %s cannot be decoded: %r", self._settings.address, error)
            self._end(
                Reason(f"the broker at {self._settings.address} sent a malformed packet", Fault.UNREACHABLE)
            )
            return
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self.ended.done():
            self._read()

    def _write_failed(self) -> None:
        self._end(self._loss())

    def _keep_alive(self) -> None:
        """Let paho ping; give up on a broker that leaves a request without an answer."""
        if self.ended.done():
            return
        self._client.loop_misc()
        limit_s = self._settings.ack_timeout_s
        if self._connack.done() and self.waits and self._loop.time() - self._progress_at > limit_s:
            if self._paused:
                text = f"a request waited {limit_s:g} s behind messages that nobody consumed: consume while publishing"
            else:
                text = f"the broker at {self._settings.address} acknowledged nothing for {limit_s:g} s"
            self._end(Reason(text, Fault.UNREACHABLE))
            return
        self._watch(limit_s)
        wait_s = min(self._settings.keepalive_s / 4, limit_s / 4, 5.0)
        self._tick = self._loop.call_later(wait_s, self._keep_alive)

    def _watch(self, limit_s: float) -> None:
        """Ping a broker that leaves the oldest request without an answer: see `_on_pong`.

        A pong proves something whenever it is read, and however long that takes: neither a slow link nor a reader that
        stops and goes on all the time, as in a flood, is a reason to judge early or never. Pongs may be lost, too.
        """
        answered = 0 < self._ping <= self._client.pongs
        share = _PONG_SHARE if answered else _PING_SHARE
        if (self._publishing or self._asking) and self._loop.time() - self._watched_at > share * limit_s:
            self._watched_at = self._loop.time()
            ping = self._client.ping()
            if (
                answered or not self._ping
            ):  # else the one before is waited for, and this makes up for it if it is lost
                self._ping, self._ping_is_second = ping, answered

    # ------------------------------------------------------------------------------ closing

    async def close(self, flush_timeout_s: float) -> None:
        """Wait for what is under way, within the limit, and take leave so that the last will does not fire."""
        wire = self._wire
        if wire is None or self.ended.done():
            return
        pending = [future for future, _ in self._publishing.values()]
        if pending:
            await asyncio.wait(pending, timeout=flush_timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(flush_timeout_s):
                await wire.drain()
        if self.ended.done():
            return
        wire.linger()
        self._client.disconnect()
        self._end(Reason("we closed the connection", Fault.UNREACHABLE))
        await wire.wait_for_end(flush_timeout_s)

    def abort(self) -> None:
        """Drop the connection without a word: the broker publishes the last will."""
        if self._wire is not None:
            self._wire.abort()
        self._end(Reason("we dropped the connection", Fault.UNREACHABLE))

    def _end(self, reason: Reason) -> None:
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._tick is not None:
            self._tick.cancel()
        if not self._connack.done():
            self._connack.set_exception(AttemptError(reason))
            self._connack.exception()  # seen, even if nobody waits
        for future, cost in self._publishing.values():
            self._window.release(cost)
            if not future.done():
                future.set_exception(ConnectionFailedError(reason.text))
                future.exception()
        for asked in self._asking.values():
            if not asked.done():
                asked.set_exception(ConnectionFailedError(reason.text))
                asked.exception()
        self._publishing.clear()
        self._asking.clear()
        self._unacknowledged.clear()
        if self._wire is not None:
            self._wire.close()
        self._waits_changed()

    def _loss(self) -> Reason:
        wire = self._wire
        error, ended = (None, False) if wire is None else (wire.error, wire.ended)
        if not self._connack.done() and self._said is None:
            if isinstance(
                error, ssl.SSLError
            ):  # in TLS 1.3 the broker judges our certificate after the handshake
                return explain_failed_connect(error, self._settings)
            return explain_silence(self._settings, closed=True)
        return explain_loss(
            self._settings, self._profile.client_id, error=error, ended=ended, said=self._said
        )

    # ------------------------------------------------------------------------------ what paho tells us

    def _on_connect(
        self,
        _client: Client,
        _userdata: object,
        flags: ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if self._connack.done():
            return
        if code.is_failure:
            reason = explain_refusal(code.value, str(code), self._settings, self._username)
            self._connack.set_exception(AttemptError(reason))
            return
        server_window = getattr(properties, "ReceiveMaximum", _PUBLISH_WINDOW)
        if server_window < _PUBLISH_WINDOW:
            self._window = Window(server_window, _PUBLISH_WINDOW_BYTES)
        self._connack.set_result(
            Connected(
                session_present=flags.session_present,
                protocol=self._protocol,
                max_packet_bytes=getattr(properties, "MaximumPacketSize", None),
            )
        )

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        flags: DisconnectFlags,
        code: ReasonCode,
        _properties: object,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._said = str(code)
        # paho still closes the socket after some of these calls, and only then is all that it knows known.
        self._loop.call_soon(lambda: self._end(self._loss()))

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic.encode()
        except UnicodeDecodeError:
            topic = b"\xff"
        self._hears(topic, bytes(message.payload), message.mid, message.qos, message.retain, message.dup)

    def _hears(
        self,
        topic: bytes,
        payload: bytes,
        mid: int,
        qos: int,
        retain: bool,  # noqa: FBT001  # as `aio_client.Hears` has it
        dup: bool,  # noqa: FBT001
    ) -> None:
        acknowledge: Callable[[], None] | None = None
        if qos > 0:
            token = object()
            self._unacknowledged[mid] = token
            acknowledge = partial(self._acknowledge, mid, token)
        try:
            name = topic.decode()
        except UnicodeDecodeError:
            _log.warning("a message on a topic that is not UTF-8 is ignored")
            if acknowledge is not None:
                acknowledge()
            return
        self._deliver(Message(name, payload, retain, qos, dup, _acknowledge=acknowledge))

    def _on_publish(
        self, _client: Client, _userdata: object, mid: int, code: ReasonCode, _properties: object
    ) -> None:
        if mid not in self._publishing:
            return
        # Mosquitto acknowledges in the order in which it received: what is passed over was received, and its
        # acknowledgement is lost. No broker must (MQTT-4.6.0-2 binds clients): RabbitMQ's come as its queues confirm.
        # What is passed over there may still be lost with the broker, as may what it has acknowledged elsewhere.
        for earlier in list(takewhile(lambda each: each != mid, self._publishing)):
            self._client.forget(earlier)
            self._acknowledged(earlier, None)
        refused = f"the broker refuses the message: {str(code).lower()}" if code.is_failure else None
        self._acknowledged(mid, refused)
        if not self._asking:
            self._watch_anew()
        self._progressed()

    def _acknowledged(self, mid: int, refused: str | None) -> None:
        future, cost = self._publishing.pop(mid)
        self._window.release(cost)
        if future.done():
            return
        if refused is not None:
            future.set_exception(RefusedError(refused))
        else:
            future.set_result(None)

    def _on_pong(self) -> None:
        """A second ping is answered, and the oldest request, which came before the first one, is not: that is lost.

        Mosquitto (from 2.0.16 on, and 2.0.11 of Debian) drops whatever packet it makes for a client while
        `max_queued_messages` of them wait for its socket, and says nothing: under a flood acknowledgements are lost.
        The second ping is for brokers that answer pings before they have done with what came earlier.
        """
        if self._client.pongs != self._ping or not (self._publishing or self._asking):
            return
        self._watched_at = self._loop.time()
        if self._ping_is_second:
            text = (
                f"the broker at {self._settings.address} answers, and has lost {self.waits} "
                "acknowledgements: it drops packets when too many wait for us"
            )
            # paho is in the midst of reading
            self._loop.call_soon(self._end, Reason(text, Fault.UNREACHABLE))

    def _on_answer(
        self, _client: Client, _userdata: object, mid: int, codes: list[ReasonCode], _properties: object
    ) -> None:
        if mid not in self._asking:
            return
        if mid == next(iter(self._asking)):
            self._watch_anew()
        future = self._asking.pop(mid)
        self._progressed()
        if not future.done():
            future.set_result([code.value for code in codes])

    def _progressed(self) -> None:
        self._progress_at = self._loop.time()
        self._waits_changed()


def _batches(filters: Sequence[str]) -> list[Sequence[str]]:
    return [filters[start : start + _FILTERS_A_PACKET] for start in range(0, len(filters), _FILTERS_A_PACKET)]


def _reason_name(code: int) -> str:
    names = {
        0x83: "implementation error",
        0x87: "not authorized",
        0x8F: "topic filter invalid",
        0x97: "quota exceeded",
    }
    return names.get(code, f"refused with code {code:#x}")
