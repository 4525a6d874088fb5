"""A connection in the device's own name, for as long as the examination lasts: what arrives is kept by topic.

It is made under the agent's client id: should an earlier connection of the agent still hang somewhere, the broker ends
that one, and publishes its last will, before anything is said here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from fedmq_edge_agent.examining.device import Device
from fedmq_protocol.aio import Connected, Connection, Disconnected, Message, RefusedError
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.limits import MAX_PACKET_BYTES
from fedmq_protocol.messages import Body
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import UpKind

CONNECT_S = 5.0
_MILLISECONDS = 1_000


class Line:
    """An open connection; made by `open`."""

    def __init__(self, device: Device, connection: Connection) -> None:
        self._device = device
        self._connection = connection
        self.connections = 0
        """How many there were, this one included: it is made again where the broker hangs up."""
        self._lost = ""
        self._came: dict[str, list[Message]] = {}
        self._news = asyncio.Event()
        self._pump = asyncio.create_task(self._listen(), name="examining-line")
        self._connected: asyncio.Future[Connected] = asyncio.get_running_loop().create_future()
        self._sealer: Sealer | None = None

    @classmethod
    async def open(cls, device: Device) -> Line:
        """Connect.

        It takes packets as large as the protocol's, whatever the device is set to: what is too large for the device
        is then seen, and measured.

        Raises:
            ConnectionFailedError: the broker cannot be reached, or refuses this device.
        """
        settings = device.settings
        broker = settings.broker.model_copy(
            update={
                "max_packet_bytes": max(settings.broker.max_packet_bytes, MAX_PACKET_BYTES),
                "connect_timeout_s": min(settings.broker.connect_timeout_s, CONNECT_S),
            }
        )
        connection = Connection(broker, client_id=f"fedmq-{settings.federation}-{settings.id}")
        await connection.start(wait=True, timeout_s=CONNECT_S)
        line = cls(device, connection)
        async with asyncio.timeout(CONNECT_S):
            await asyncio.shield(line._connected)
        return line

    @property
    def told(self) -> Connected:
        """What the broker said of itself."""
        return self._connected.result()

    async def close(self) -> None:
        """Take leave."""
        await self._connection.stop()
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribe; raises `RefusedError` where the broker says no."""
        await self._connection.subscribe([topic_filter])

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions."""
        await self._connection.unsubscribe(filters)

    async def publish_nothing(self, topic: str) -> None:
        """An empty payload, which is ignored by everybody: only the broker's answer to it counts.

        Raises:
            RefusedError: the broker says that this is not allowed (MQTT 5 only).
            ConnectionFailedError: it hangs up instead.
        """
        await self._connection.publish(topic, b"")

    def can_speak(self) -> bool:
        """Whether the device has a key and a session that is over, in which nothing it says counts as its own."""
        return self._device.key is not None and self._device.session is not None

    def seal(self, kind: UpKind, body: Body) -> tuple[str, bytes]:
        """A message of the last reserved session, which no agent has used or ever will."""
        key, session = self._device.key, self._device.session
        assert isinstance(key, SigningKey)
        assert session is not None
        if self._sealer is None:
            used = int(self._device.clock() * _MILLISECONDS)  # by an earlier examination
            self._sealer = Sealer(sender=self._device.settings.id, epoch=session, key=key, after=used)
        topic = self._device.topics.up(self._device.settings.id, kind)
        return topic, self._sealer.seal(topic, body)

    async def publish(self, topic: str, packet: bytes) -> None:
        """Publish what `seal` made; raises as `publish_nothing`, and `ValueError` where it is too large."""
        await self._connection.publish(topic, packet)

    async def lost(self, within_s: float) -> str:
        """Why the broker ended the connection, if it does within a time; empty: it did not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self._lost:
                    self._news.clear()
                    await self._news.wait()
        return self._lost

    async def connected_after(self, connections: int) -> bool:
        """The broker hung up: whether there soon is another connection than so many before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                while self.connections <= connections:
                    self._news.clear()
                    await self._news.wait()
        return self.connections > connections

    def have(self, topic: str, *, retained: bool | None = None) -> Message | None:
        """The newest that came on a topic, retained or live; None: nothing did."""
        fitting = (one for one in reversed(self._came.get(topic, ())) if retained in {None, one.retained})
        return next(fitting, None)

    async def wait_for(self, *topics: str, within_s: float, retained: bool | None = None) -> Message | None:
        """The first on any of these topics that is there or comes within a time; None: nothing does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    for topic in topics:
                        message = self.have(topic, retained=retained)
                        if message is not None:
                            return message
                    self._news.clear()
                    await self._news.wait()
        return None

    def forget(self, topic: str) -> None:
        """Drop what came on a topic."""
        self._came.pop(topic, None)

    async def _listen(self) -> None:
        async for event in self._connection.events():
            match event:
                case Connected():
                    self.connections += 1
                    self._news.set()
                    if not self._connected.done():
                        self._connected.set_result(event)
                case Disconnected(reason=reason):
                    self._lost = self._lost or reason
                    self._news.set()
                case Message(topic=topic):
                    self._came.setdefault(topic, []).append(event)
                    self._news.set()


__all__ = ["Line", "RefusedError"]
