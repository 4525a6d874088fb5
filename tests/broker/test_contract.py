"""What fedmq needs of a broker, asked of each broker that it can start."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import get_args

import pytest

from fedmq_broker.runner import RunningBroker
from fedmq_protocol.aio import Connected, Disconnected, Will
from tests.broker_fixtures import PATIENCE_S, Connect, next_message, next_of, silence

KINDS = [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]
PACKET = 131_072


@pytest.fixture(params=KINDS)
def broker(request: pytest.FixtureRequest, start: Callable[..., RunningBroker]) -> RunningBroker:
    return start(request.param)


async def test_a_message_goes_from_one_to_the_other_at_qos_1(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await b.subscribe(["fed/v1/x"])
    await a.publish("fed/v1/x", b"hello")
    message = await next_message(b.events())
    assert (message.topic, message.payload, message.qos, message.retained) == ("fed/v1/x", b"hello", 1, False)


async def test_qos_0_arrives_too(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await b.subscribe(["x"], qos=0)
    await a.publish("x", b"1", qos=0)
    message = await next_message(b.events())
    assert (message.payload, message.qos) == (b"1", 0)


@pytest.mark.parametrize(
    ("topic_filter", "matching", "others"),
    [
        ("f/+/up", ["f/a/up", "f//up"], ["f/a/b/up", "f/up", "f/a/down"]),
        ("f/#", ["f", "f/a", "f/a/b/c"], ["g", "ff/a"]),
        ("f/dev/+/up/+", ["f/dev/a/up/update"], ["f/dev/a/up", "f/dev/a/up/x/y", "f/dev/a/down/update"]),
        ("f/exact", ["f/exact"], ["f/Exact", "f/exact/", "/f/exact"]),
        ("#", ["f", "a/b"], ["$mine/x"]),
        ("+/x", ["f/x"], ["$mine/x"]),
    ],
)
async def test_filters(
    broker: RunningBroker, connect: Connect, topic_filter: str, matching: list[str], others: list[str]
) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await b.subscribe([topic_filter, "marker"])
    for topic in matching + others:
        await a.publish(topic, b"")
    seen = await silence(b.events(), lambda: a.publish("marker", b""), "marker")
    assert {message.topic for message in seen} - {"marker"} == set(matching)


async def test_messages_of_a_publisher_keep_their_order(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await b.subscribe(["n"])
    events = b.events()

    async def publish() -> None:
        for number in range(300):
            await a.publish("n", str(number).encode())

    publishing = asyncio.create_task(publish())
    received = [int((await next_message(events)).payload) for _ in range(300)]
    await publishing
    assert received == list(range(300))


async def test_a_retained_message_is_what_a_later_subscriber_gets(
    broker: RunningBroker, connect: Connect
) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await a.publish("model/1/0", b"old", retain=True)
    await a.publish("model/1/0", b"new", retain=True)
    await a.publish("model/1/1", b"other", retain=True)
    await b.subscribe(["model/1/0"])
    events = b.events()
    message = await next_message(events)
    assert (message.payload, message.retained) == (b"new", True)
    seen = await silence(events, lambda: a.publish("model/1/0", b"live", retain=True), "model/1/0")
    assert seen == []  # it came once, and the live one after it


async def test_a_live_message_is_not_marked_as_retained(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await b.subscribe(["m"])
    await a.publish("m", b"x", retain=True)
    assert not (await next_message(b.events())).retained


async def test_an_empty_retained_message_clears(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await a.publish("m", b"x", retain=True)
    await a.publish("m", b"", retain=True)
    await b.subscribe(["m", "marker"])
    assert await silence(b.events(), lambda: a.publish("marker", b""), "marker") == []


async def test_subscribing_again_gets_the_retained_message_again(
    broker: RunningBroker, connect: Connect
) -> None:
    a = await connect(broker.url, "a")
    await a.publish("m", b"x", retain=True)
    events = a.events()
    for _ in range(3):
        await a.subscribe(["m"])
        assert (await next_message(events)).retained
        await a.unsubscribe(["m"])


async def test_wildcards_find_what_is_retained(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    for device in range(30):
        await a.publish(f"fed/dev/d{device}/presence", b"here", retain=True)
    await b.subscribe(["fed/dev/+/presence"])
    events = b.events()
    seen = {(await next_message(events)).topic for _ in range(30)}
    assert seen == {f"fed/dev/d{device}/presence" for device in range(30)}


async def test_after_unsubscribing_nothing_comes(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await b.subscribe(["m", "marker"])
    await b.unsubscribe(["m"])
    await a.publish("m", b"x")
    assert await silence(b.events(), lambda: a.publish("marker", b""), "marker") == []


async def test_a_consumer_may_ask_while_it_holds_a_message(broker: RunningBroker, connect: Connect) -> None:
    """It subscribes, publishes and unsubscribes with an unacknowledged retained message in its hand."""
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await a.publish("announcement", b"version 1", retain=True)
    await a.publish("chunk", b"weights", retain=True)
    await b.subscribe(["announcement"])
    events = b.events()
    assert (
        await next_message(events)
    ).topic == "announcement"  # acknowledged only when the next is asked for
    async with asyncio.timeout(PATIENCE_S):
        await b.subscribe(["chunk"])
        await b.publish("hello", b"")
        await b.unsubscribe(["announcement"])
    assert (await next_message(events)).payload == b"weights"


async def test_the_last_will_fires_when_a_client_vanishes(broker: RunningBroker, connect: Connect) -> None:
    watcher = await connect(broker.url, "w")
    await watcher.subscribe(["presence"])
    device = await connect(broker.url, "d", will=Will("presence", b"gone", retain=True))
    await device.stop(graceful=False)
    assert (await next_message(watcher.events())).payload == b"gone"
    later = await connect(broker.url, "l")
    await later.subscribe(["presence"])
    message = await next_message(later.events())
    assert (message.payload, message.retained) == (b"gone", True)


async def test_the_last_will_does_not_fire_after_taking_leave(
    broker: RunningBroker, connect: Connect
) -> None:
    watcher = await connect(broker.url, "w")
    await watcher.subscribe(["presence", "marker"])
    device = await connect(broker.url, "d", will=Will("presence", b"gone"))
    await device.stop(graceful=True)
    assert await silence(watcher.events(), lambda: watcher.publish("marker", b""), "marker") == []


async def test_a_silent_client_is_given_up_and_its_will_fires(
    broker: RunningBroker, connect: Connect
) -> None:
    """Half-open: it connected with a keepalive of one second, and never speaks again."""
    watcher = await connect(broker.url, "w")
    await watcher.subscribe(["presence"])
    body = b"\x00\x04MQTT\x04\x0e\x00\x01" + b"\x00\x01d" + b"\x00\x08presence" + b"\x00\x04gone"
    with socket.create_connection((broker.host, broker.port)) as silent:
        silent.sendall(bytes([0x10, len(body)]) + body)
        assert (await next_message(watcher.events())).payload == b"gone"


async def test_the_same_client_id_takes_over(broker: RunningBroker, connect: Connect) -> None:
    first = await connect(broker.url, "same", reconnect_min_s=600, reconnect_max_s=600)
    second = await connect(broker.url, "same")
    await second.subscribe(["m"])
    await second.publish("m", b"mine")
    assert (await next_message(second.events())).payload == b"mine"
    assert isinstance(await next_of(first.events(), Disconnected), Disconnected)
    assert not first.is_connected


async def test_a_clean_session_forgets(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    await b.subscribe(["m"])
    await b.stop()
    await a.publish("m", b"missed")
    again = await connect(broker.url, "b")
    await again.subscribe(["marker"])
    events = again.events()
    connected = await next_of(events, Connected)
    assert isinstance(connected, Connected)
    assert not connected.session_present
    assert await silence(events, lambda: again.publish("marker", b""), "marker") == []


async def test_packets_of_128_kilobytes(broker: RunningBroker, connect: Connect) -> None:
    a, b = await connect(broker.url, "a"), await connect(broker.url, "b")
    payload = bytes(range(256)) * 511
    assert len(payload) > PACKET - 300
    await a.publish("chunk/0", payload, retain=True)
    await b.subscribe(["chunk/0"])
    assert (await next_message(b.events())).payload == payload


async def test_thirty_clients_and_a_whole_model_each(broker: RunningBroker, connect: Connect) -> None:
    """Thirty devices pull ten retained chunks each, two at a time, while they report."""
    chunks = {f"model/{index}": bytes([index]) * 100_000 for index in range(10)}
    coordinator = await connect(broker.url, "c")
    for topic, payload in chunks.items():
        await coordinator.publish(topic, payload, retain=True)
    await coordinator.subscribe(["up/+"])

    async def device(name: str) -> None:
        connection = await connect(broker.url, name)
        events = connection.events()
        for index in range(0, len(chunks), 2):
            window = [f"model/{index}", f"model/{index + 1}"]
            await connection.subscribe(window)
            got = [await next_message(events), await next_message(events)]
            assert {message.topic: message.payload for message in got} == {
                topic: chunks[topic] for topic in window
            }
            await connection.unsubscribe(window)
        await connection.publish(f"up/{name}", b"\x01" * 16_000)

    async with asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(device(f"d{number}"))
        events = coordinator.events()
        reports = {(await next_message(events)).topic for _ in range(30)}
    assert len(reports) == 30


async def test_a_slow_reader_holds_up_nobody_else(broker: RunningBroker, connect: Connect) -> None:
    a, fast, slow = [await connect(broker.url, name) for name in ("a", "fast", "slow")]
    await fast.subscribe(["m"])
    await slow.subscribe(["m"])  # and never asks for an event
    events = fast.events()

    async def publish() -> None:
        for number in range(200):
            await a.publish("m", number.to_bytes(2) * 5_000)

    publishing = asyncio.create_task(publish())
    for number in range(200):
        assert (await next_message(events)).payload[:2] == number.to_bytes(2)
    await publishing


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x10\xff\xff\xff\x7f",  # a CONNECT that announces 256 MB
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x40",  # a client id longer than the packet
        b"\x30\x05\x00\x01xhi",  # PUBLISH before CONNECT
    ],
)
async def test_garbage_disturbs_nobody(broker: RunningBroker, connect: Connect, garbage: bytes) -> None:
    a = await connect(broker.url, "a")
    await a.subscribe(["m"])
    with socket.create_connection((broker.host, broker.port)) as sock:
        sock.sendall(garbage)
        await a.publish("m", b"still here")
        assert (await next_message(a.events())).payload == b"still here"
    assert broker.is_running


def test_every_kind_is_asked() -> None:
    from fedmq_broker.runner import BrokerKind  # noqa: PLC0415

    assert set(get_args(BrokerKind)) == {"auto", "mosquitto", "embedded"}
