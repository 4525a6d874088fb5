"""The counting proxy in front of a server that says everything twice."""

from __future__ import annotations

import asyncio

from benchmarks.proxy import Connection, CountingProxy, Way


async def _say_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(2 * await reader.read())
    await writer.drain()
    writer.close()


async def test_counts_what_passes_both_ways() -> None:
    tapped: dict[Way, bytes] = {"up": b"", "down": b""}

    def tap(_: Connection, way: Way, data: bytes) -> None:
        tapped[way] += data

    server = await asyncio.start_server(_say_twice, "127.0.0.1", 0)
    proxy = CountingProxy(server.sockets[0].getsockname()[1], tap=tap)
    proxy.start()
    said = [b"abc" * 100_000, b"x"]
    try:
        for text in said:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(text)
            writer.write_eof()
            assert await reader.read() == 2 * text
            writer.close()
            await writer.wait_closed()
    finally:
        server.close()
        await server.wait_closed()
    assert [(each.name, each.up, each.down) for each in proxy.connections] == [
        ("0", 300_000, 600_000),
        ("1", 1, 2),
    ]
    assert proxy.totals() == (300_001, 600_002)
    assert proxy.totals(lambda name: name == "1") == (1, 2)
    assert tapped == {"up": b"".join(said), "down": b"".join(2 * text for text in said)}


async def test_closes_what_it_cannot_pass_on() -> None:
    closed = await asyncio.start_server(_say_twice, "127.0.0.1", 0)
    port = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    proxy = CountingProxy(port)
    proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert proxy.connections == []
