"""Brokers that lose acknowledgements: a publication neither waits for ever nor holds its place in the window."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from fedmq_protocol.aio import Connected, Disconnected, Message
from fedmq_protocol.errors import ConnectionFailedError
from tests.broker_fixtures import PATIENCE_S, Connect, CustomBroker, next_of

CONNECT, PUBLISH, PINGREQ = 1, 3, 12
CustomMosquitto = Callable[[str], CustomBroker]
CROWDED = """listener {port} 127.0.0.1
allow_anonymous true
max_queued_messages 20
"""


@contextlib.asynccontextmanager
async def forgetful(
    acknowledges: Callable[[int], bool], *, pongs: bool = True, slow_s: float = 0.0, floods: bool = False
) -> AsyncIterator[str]:
    """The URL of a broker that takes every message in, and acknowledges only those with such a packet id.

    Args:
        acknowledges: which.
        pongs: whether it answers pings.
        slow_s: how long a message is on its way, and all that comes after it behind it.
        floods: whether there is always more to read.
    """
    tasks: list[asyncio.Task[None]] = []

    async def flood(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"\x30\xe8\x07" + b"\x00\x01f\x00" + bytes(996))
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind = (await reader.readexactly(1))[0] >> 4
                length, shift, more = 0, 0, True
                while more:
                    digit = (await reader.readexactly(1))[0]
                    length, shift, more = length | (digit & 127) << shift, shift + 7, digit > 127
                packet = await reader.readexactly(length)
                if kind == CONNECT:
                    writer.write(bytes.fromhex("2003000000"))
                    if floods:
                        writer.transport.set_write_buffer_limits(1_000)
                        tasks.append(asyncio.create_task(flood(writer)))
                elif kind == PUBLISH:
                    at = 2 + int.from_bytes(packet[:2], "big")
                    mid = packet[at : at + 2]
                    await asyncio.sleep(slow_s)
                    if acknowledges(int.from_bytes(mid, "big")):
                        writer.write(b"\x40\x02" + mid)
                elif kind == PINGREQ and pongs:
                    writer.write(bytes.fromhex("d000"))

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def one() -> None:
            try:
                await serve(reader, writer)
            finally:
                writer.close()

        tasks.append(asyncio.create_task(one()))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_acknowledgement_that_is_overtaken_was_lost_and_its_message_was_not(
    connect: Connect,
) -> None:
    async with forgetful(lambda mid: mid % 20 == 0) as url:
        connection = await connect(url, "a")
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(connection.publish("m", b"x") for _ in range(200)))
        assert connection.is_connected
        session = connection._session
        assert session is not None
        assert not session._client._out_messages  # paho keeps what was said until then


async def test_a_broker_that_answers_and_lost_all_acknowledgements_is_left_soon(connect: Connect) -> None:
    async with forgetful(lambda _: False) as url:
        connection = await connect(url, "a", ack_timeout_s=12.0, reconnect_min_s=0.05)
        events = connection.events()
        await next_of(events, Connected)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ConnectionFailedError, match=r"answers, and has lost 20 acknowledgements"):
            await asyncio.gather(*(connection.publish("m", b"x") for _ in range(30)))
        assert loop.time() - began >= 3.0  # a sixth until the ping, a twelfth after its answer
        lost = await next_of(events, Disconnected)
        assert isinstance(lost, Disconnected)
        assert "it drops packets when too many wait for us" in lost.reason
        await next_of(events, Connected)


async def test_an_answer_to_a_subscription_may_be_lost_as_well(connect: Connect) -> None:
    async with forgetful(lambda _: False) as url:
        connection = await connect(url, "a", ack_timeout_s=1.2)
        events = connection.events()
        await next_of(events, Connected)
        async with asyncio.timeout(PATIENCE_S):
            await connection.subscribe(["m"])  # which is asked for again after the next connection
        lost = await next_of(events, Disconnected)
        assert isinstance(lost, Disconnected)
        assert "has lost 1 acknowledgements" in lost.reason


async def test_an_answer_that_is_lost_is_noticed_while_others_come(connect: Connect) -> None:
    async with forgetful(lambda _: True) as url:
        connection = await connect(url, "a", ack_timeout_s=1.2)

        async def publish() -> None:
            with contextlib.suppress(ConnectionFailedError):
                while True:
                    await connection.publish("m", b"x")

        publishing = asyncio.create_task(publish())
        async with asyncio.timeout(PATIENCE_S):
            await connection.subscribe(["m"])
            await publishing


async def test_a_reader_who_stops_and_goes_on_all_the_time_notices_it_as_well(connect: Connect) -> None:
    async with forgetful(lambda _: False, floods=True) as url:
        connection = await connect(url, "a", ack_timeout_s=1.2, receive_maximum=1, max_packet_bytes=1_024)

        async def consume() -> None:
            async for _ in connection.events():
                await asyncio.sleep(0)

        consuming = asyncio.create_task(consume())
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ConnectionFailedError, match=r"answers, and has lost 1 acknowledgements"):
                await connection.publish("m", b"x")
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)


async def test_a_slow_link_is_given_no_less_time_than_without_pings(connect: Connect) -> None:
    async with forgetful(lambda _: True, slow_s=6.0) as url:
        connection = await connect(url, "a", ack_timeout_s=12.0, keepalive_s=4)  # paho's own patience: 8 s
        await connection.publish("m", b"x")
        assert connection.is_connected


async def test_a_broker_that_answers_no_ping_either_has_all_its_time(connect: Connect) -> None:
    async with forgetful(lambda _: False, pongs=False) as url:
        connection = await connect(url, "a", ack_timeout_s=2.0)
        with pytest.raises(ConnectionFailedError, match=r"acknowledged nothing for 2 s"):
            await connection.publish("m", b"x")


async def test_what_a_real_broker_drops_before_a_slow_reader_holds_up_nothing(
    custom_mosquitto: CustomMosquitto, connect: Connect
) -> None:
    broker = custom_mosquitto(CROWDED)
    slow = await connect(
        f"mqtt://127.0.0.1:{broker.port}",
        "slow",
        max_packet_bytes=20_000,
        ack_timeout_s=12.0,
        reconnect_min_s=0.05,
    )
    events = slow.events()
    await next_of(events, Connected)
    await slow.subscribe(["flood"])
    flooder = await connect(f"mqtt://127.0.0.1:{broker.port}", "flooder")
    for _ in range(1_500):  # more than the sockets between hold, while nobody consumes
        await flooder.publish("flood", bytes(10_000), qos=0)
    await flooder.publish("m", b"")  # all of it has reached the broker
    said = [asyncio.create_task(slow.publish("m", b"x")) for _ in range(5)]
    consumed = 0

    async def consume() -> None:
        nonlocal consumed
        async for event in events:
            consumed += isinstance(event, Message)

    consuming = asyncio.create_task(consume())
    done, waiting = await asyncio.wait(said, timeout=PATIENCE_S)
    assert not waiting
    for task in done:
        error = task.exception()
        assert error is None or "has lost" in str(error)
    async with asyncio.timeout(PATIENCE_S):
        while not slow.is_connected:  # noqa: ASYNC110  # another task consumes what tells it
            await asyncio.sleep(0.01)
        await slow.publish("m", b"y")
    assert consumed
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)
