"""A TCP proxy on loopback that counts every byte between clients and a server, both ways. Shared by the benchmarks.

It counts what the sockets carry: framing, acknowledgements, keepalives and all, but neither TCP's nor IP's headers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Way: TypeAlias = Literal["up", "down"]
"""up: from the client to the server."""

_READ_BYTES = 65_536
_MQTT_CONNECT = 0x10
_MQTT_5 = 5


@dataclass(eq=False)
class Connection:
    """One client's TCP connection.

    Attributes:
        name: the MQTT client id, where the first packet is a CONNECT; else the connection's number.
        up: bytes that the client has sent.
        down: bytes that the client has been sent.
    """

    name: str
    up: int = 0
    down: int = 0


@dataclass
class CountingProxy:
    """Passes bytes on between clients and a server, and counts them.

    Attributes:
        target: port of the server on loopback.
        tap: told of every piece that passes: the connection, the way, the bytes; after they are counted.
        port: where clients connect.
        connections: all that there were, in their order.
    """

    target: int
    tap: Callable[[Connection, Way, bytes], None] | None = None
    port: int = 0
    connections: list[Connection] = field(default_factory=list)

    def start(self) -> None:
        """Listen on a free port, in a thread of its own that ends with the process."""
        ready = threading.Event()

        def run() -> None:
            loop = asyncio.new_event_loop()
            server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        ready.wait()

    def totals(self, of: Callable[[str], bool] = lambda _: True) -> tuple[int, int]:
        """Bytes up and down over all connections whose name passes."""
        chosen = [each for each in list(self.connections) if of(each.name)]
        return sum(each.up for each in chosen), sum(each.down for each in chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # the server has ended
            writer.close()
            return
        first = await reader.read(_READ_BYTES)
        connection = Connection(client_id(first) or str(len(self.connections)))
        self.connections.append(connection)
        self._count(connection, "up", first)
        server_writer.write(first)
        try:
            await asyncio.gather(
                self._pass(reader, server_writer, connection, "up"),
                self._pass(server_reader, writer, connection, "down"),
            )
        finally:
            server_writer.close()
            writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection, way: Way
    ) -> None:
        """Pass one way on until its sender has no more to say; the other way may go on."""
        try:
            while data := await reader.read(_READ_BYTES):
                self._count(connection, way, data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.close()

    def _count(self, connection: Connection, way: Way, data: bytes) -> None:
        setattr(connection, way, getattr(connection, way) + len(data))
        if self.tap is not None:
            self.tap(connection, way, data)


def client_id(packet: bytes) -> str:
    """The client identifier of an MQTT CONNECT packet, 3.1.1 or 5 (MQTT 5, section 3.1); empty for other bytes."""
    if not packet or packet[0] != _MQTT_CONNECT:
        return ""
    at = 1
    while packet[at] & 0x80:
        at += 1
    at += 1
    at += 2 + int.from_bytes(packet[at : at + 2], "big")  # protocol name
    version = packet[at]
    at += 4  # version, flags, keepalive
    if version == _MQTT_5:
        at += 1 + packet[at]
    length = int.from_bytes(packet[at : at + 2], "big")
    return packet[at + 2 : at + 2 + length].decode()
