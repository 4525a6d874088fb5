"""MQTT 3.1.1 at QoS 1 in as few lines as will do: a client that costs so little that thousands fit into a process.

It connects over TLS, subscribes, publishes, and acknowledges what it hears at once. It never connects again: in a
measurement a lost connection is a failure. Shared by the benchmarks.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, cast

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK = 0x10, 0x20, 0x30, 0x40, 0x82, 0x90
_QOS_1, _RETAIN = 0x02, 0x01
_MANY: Final = 65_535
_LEAVING_S: Final = 2.0
Hears = Callable[[str, bytes], None]
"""Topic and payload."""


class LightClient(asyncio.Protocol):
    """One connection.

    Args:
        name: the MQTT client id.
        hears: called with each message.

    Attributes:
        sent: bytes of MQTT that were written.
        received: likewise, read.
        acknowledged: how many of the messages published are.
    """

    def __init__(self, name: str, hears: Hears) -> None:
        self.name = name
        self.sent = self.received = self.published = self.acknowledged = 0
        self.lost: Exception | str | None = None
        self._hears = hears
        self._closed = asyncio.Event()
        self._buffer = bytearray()
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[bytes] | None = None
        self._packet_id = 0

    @classmethod
    async def connect(
        cls, name: str, hears: Hears, *, host: str, port: int, tls: ssl.SSLContext | None
    ) -> LightClient:
        """Connect, and return once the broker has said yes.

        Raises:
            OSError: there is no connection.
            ConnectionError: the broker refuses it.
        """
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: cls(name, hears), host, port, ssl=tls)
        head = b"\x00\x04MQTT\x04\x02\x02\x58" + len(name).to_bytes(2, "big") + name.encode()
        answer = await client.ask(_CONNECT, head)
        if answer[1]:
            raise ConnectionError(f"{name} is refused with code {answer[1]}")
        return client

    async def subscribe(self, filters: list[str]) -> None:
        """Return once all are granted.

        Raises:
            ConnectionError: one is refused.
        """
        body = b"".join(len(each.encode()).to_bytes(2, "big") + each.encode() + b"\x01" for each in filters)
        answer = await self.ask(_SUBSCRIBE, self._next_id() + body)
        if any(code > 2 for code in answer[2:]):  # the highest QoS
            raise ConnectionError(f"{self.name} may not subscribe to {filters}")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand over a message."""
        self.published += 1
        first = _PUBLISH | _QOS_1 | (_RETAIN if retain else 0)
        name = topic.encode()
        self._write(first, len(name).to_bytes(2, "big") + name + self._next_id() + payload)

    async def close(self) -> None:
        """Take leave, and return once the connection is closed."""
        self.lost = self.lost or "closed"
        self._transport.write(b"\xe0\x00")
        self._transport.close()
        try:
            async with asyncio.timeout(_LEAVING_S):
                await self._closed.wait()
        except TimeoutError:
            self._transport.abort()
            await self._closed.wait()

    # ------------------------------------------------------------------------------ what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or exc or "the broker closed the connection"
        self._closed.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"{self.name}: {self.lost}"))

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        buffer = self._buffer
        buffer += data
        at = 0
        acknowledgements = bytearray()
        while (found := _cut(buffer, at)) is not None:
            first, begin, at = found
            kind = first & 0xF0
            if kind == _PUBLISH:
                length = int.from_bytes(buffer[begin : begin + 2], "big")
                topic = buffer[begin + 2 : begin + 2 + length].decode()
                begin += 2 + length
                if first & _QOS_1:
                    acknowledgements += b"\x40\x02" + buffer[begin : begin + 2]
                    begin += 2
                self._hears(topic, bytes(buffer[begin:at]))
            elif kind == _PUBACK:
                self.acknowledged += 1
            elif self._answer is not None and not self._answer.done():
                self._answer.set_result(bytes(buffer[begin:at]))
        del buffer[:at]
        if acknowledgements:
            self.sent += len(acknowledgements)
            self._transport.write(bytes(acknowledgements))

    # ------------------------------------------------------------------------------ packets

    async def ask(self, first: int, body: bytes) -> bytes:
        """Send a packet, and return the body of the one that answers it."""
        self._answer = asyncio.get_running_loop().create_future()
        self._write(first, body)
        return await self._answer

    def _next_id(self) -> bytes:
        self._packet_id = self._packet_id % _MANY + 1
        return self._packet_id.to_bytes(2, "big")

    def _write(self, first: int, body: bytes) -> None:
        length, head = len(body), bytearray([first])
        while True:
            length, byte = length >> 7, length & 127
            head.append(byte | (128 if length else 0))
            if not length:
                break
        self.sent += len(head) + len(body)
        self._transport.write(bytes(head) + body)


def _cut(buffer: bytearray, at: int) -> tuple[int, int, int] | None:
    """First byte, and where the body of the packet at `at` begins and ends; None if it is not whole yet."""
    length, shift, position = 0, 0, at + 1
    while True:
        if position >= len(buffer):
            return None
        byte = buffer[position]
        position += 1
        length |= (byte & 127) << shift
        if byte < 128:  # the last byte of a length has no high bit
            break
        shift += 7
    return (buffer[at], position, position + length) if position + length <= len(buffer) else None
