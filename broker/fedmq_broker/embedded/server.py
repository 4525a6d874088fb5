"""Sockets and timers around the broker's model: bytes to events, effects to bytes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import assert_never, cast

from fedmq_broker.embedded.model import (
    BrokerModel,
    CloseConnection,
    ConnectionId,
    ConnectionLost,
    ConnectionOpened,
    DeadlinePassed,
    Effect,
    Event,
    Limits,
    PacketArrived,
    SendPacket,
    TellOperator,
)
from fedmq_broker.embedded.packets import Connect, Framer, MalformedPacketError, Publish, decode, encode

_log = logging.getLogger(__name__)

_FIRST_PACKET_BYTES = 70_000  # a CONNECT with a will of 64 KB; nobody gets more before it says who it is
_PACKET_BYTES = 2_000_000
_CHECK_S = 1.0
_FAREWELL_BYTES = 65_536
_UNSENT_BYTES = 8 * 1024 * 1024  # above this a reader misses messages at QoS 0


class Server:
    """A listening broker.

    Args:
        limits: what one client may cost.
        max_connections: further ones are closed at once.
    """

    def __init__(self, limits: Limits | None = None, *, max_connections: int = 1_000) -> None:
        self._model = BrokerModel(limits)
        self._max_connections = max_connections
        self._streams: dict[ConnectionId, _Stream] = {}
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        self._server = await self._loop.create_server(lambda: _Stream(self), host, port, backlog=256)

    async def stop(self) -> None:
        """Close every connection, and stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for stream in list(self._streams.values()):
            stream.close()
        self._streams.clear()

    def admit(self, stream: _Stream) -> ConnectionId | None:
        """Number a new connection; None when there are too many."""
        if len(self._streams) >= self._max_connections:
            return None
        number = next(self._numbers)
        self._streams[number] = stream
        self.handle(ConnectionOpened(number))
        return number

    def lose(self, connection: ConnectionId) -> None:
        """A connection is gone."""
        if self._streams.pop(connection, None) is not None:
            self.handle(ConnectionLost(connection))

    def handle(self, event: Event) -> None:
        """Let the model decide, and do as it says."""
        for effect in self._model.handle(event, now=self._loop.time()):
            self._carry_out(effect)
        if self._timer is None:
            self._arm()

    def _carry_out(self, effect: Effect) -> None:
        stream = self._streams.get(effect.connection)
        if stream is None:
            return
        match effect:
            case SendPacket():
                stream.send(effect)
            case CloseConnection():
                _log.info("connection %d is closed: %s", effect.connection, effect.reason)
                del self._streams[effect.connection]
                stream.close()
            case TellOperator():
                _log.warning("%s; what else it tries is not told", effect.text)
            case _:
                assert_never(effect)

    def _arm(self) -> None:
        # Deadlines move with each packet. Looking once a second costs less than setting a timer for each.
        if self._model.next_deadline() is not None:
            self._timer = self._loop.call_later(_CHECK_S, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._timer = None
        self.handle(DeadlinePassed())


class _Stream(asyncio.Protocol):
    """One connection's bytes."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._framer = Framer(_FIRST_PACKET_BYTES)
        self._number: ConnectionId | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._number = self._server.admit(self)
        if self._number is None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        number = self._number
        if number is None:
            return
        try:
            for first, body in self._framer.feed(data):
                packet = decode(first, body)
                if isinstance(packet, Connect):
                    self._framer.max_packet_bytes = _PACKET_BYTES
                self._server.handle(PacketArrived(number, packet))
                if self._transport is None or self._transport.is_closing():
                    return
        except MalformedPacketError as error:
            _log.warning("connection %d sent %s", number, error)
            self._end()

    def connection_lost(self, _error: Exception | None) -> None:
        self._end()

    def send(self, effect: SendPacket) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        packet = effect.packet
        if (
            isinstance(packet, Publish)
            and not packet.qos
            and transport.get_write_buffer_size() > _UNSENT_BYTES
        ):
            return  # QoS 0 promises nothing
        transport.write(encode(packet))

    def close(self) -> None:
        self._number = None
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() > _FAREWELL_BYTES:
            self._transport.abort()  # it does not read: closing in order would wait for it
        else:
            self._transport.close()

    def _end(self) -> None:
        number, self._number = self._number, None
        if number is not None:
            if self._transport is not None:
                self._transport.abort()
            self._server.lose(number)
