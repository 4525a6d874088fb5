"""A connection against real brokers: that it comes back, tells the truth, and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTErrorCode

from fedmq_broker.runner import RunningBroker
from fedmq_protocol.aio import (
    BrokerSettings,
    Connected,
    Connection,
    Disconnected,
    Message,
    RefusedError,
    Will,
)
from fedmq_protocol.errors import ConnectionFailedError
from tests.broker_fixtures import PATIENCE_S, Connect, CustomBroker, Proxy, next_message, next_of

CustomMosquitto = Callable[[str], CustomBroker]
ProxyTo = Callable[[int], Awaitable[Proxy]]
OPEN = "listener {port} 127.0.0.1\nallow_anonymous true\n"


@contextlib.asynccontextmanager
async def listening(answer: bytes | None) -> AsyncIterator[str]:
    """The URL of something that is no broker: it answers with these bytes and closes, or never answers."""
    transports: list[asyncio.WriteTransport] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transports.append(writer.transport)
        if answer is not None:
            writer.write(answer)
            writer.close()
        await reader.read()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0)


# ------------------------------------------------------------------------------------- connecting


async def test_connected_tells_version_and_limit(mosquitto: RunningBroker, connect: Connect) -> None:
    connection = await connect(mosquitto.url, "a")
    event = await next_of(connection.events(), Connected)
    assert event == Connected(session_present=False, protocol=5, max_packet_bytes=2_000_000)
    assert connection.is_connected
    assert connection.last_failure is None


async def test_an_unreachable_broker_is_named_with_the_fix(unused_tcp_port: int) -> None:
    connection = Connection(BrokerSettings(url=f"mqtt://127.0.0.1:{unused_tcp_port}"), client_id="a")
    with pytest.raises(
        ConnectionFailedError, match=rf"no broker at 127.0.0.1:{unused_tcp_port}: .*fedmq broker start"
    ):
        await connection.start(wait=True)


async def test_a_name_that_does_not_exist() -> None:
    # A resolver that reaches nobody takes long to say so.
    settings = BrokerSettings(url="mqtt://no-such-host.invalid", connect_timeout_s=100)
    connection = Connection(settings, client_id="a")
    with pytest.raises(ConnectionFailedError, match=r"'no-such-host.invalid' cannot be resolved"):
        await connection.start(wait=True)


async def test_a_port_that_speaks_something_else() -> None:
    async with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        connection = Connection(BrokerSettings(url=url), client_id="a")
        with pytest.raises(ConnectionFailedError, match="is it an MQTT port, and without TLS"):
            await connection.start(wait=True)


async def test_a_port_that_never_answers() -> None:
    async with listening(None) as url:
        settings = BrokerSettings(url=url, connect_timeout_s=2, protocol="3.1.1")  # the limit is TCP's, too
        connection = Connection(settings, client_id="a")
        with pytest.raises(ConnectionFailedError, match=r"does not answer within 2 s"):
            await connection.start(wait=True)


async def test_without_waiting_the_failure_is_an_event_told_once(unused_tcp_port: int) -> None:
    settings = BrokerSettings(
        url=f"mqtt://127.0.0.1:{unused_tcp_port}", reconnect_min_s=0.01, reconnect_max_s=0.01
    )
    async with Connection(settings, client_id="a") as connection:
        events = connection.events()
        failure = await next_of(events, Disconnected)
        assert isinstance(failure, Disconnected)
        assert "no broker at" in failure.reason
        assert not failure.permanent
        with pytest.raises(ConnectionFailedError, match="no broker at"):
            await connection.publish("x", b"")
        with pytest.raises(TimeoutError):  # a dozen attempts later there is still no second event
            await asyncio.wait_for(anext(events), 0.15)


PASSWORDS = OPEN.replace("true", "false") + "password_file {file}\n"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    # user "dev", password "right", in Mosquitto's PBKDF2 form ($7$): made by mosquitto_passwd
    path.write_text(PASSWORD_LINE)
    path.chmod(0o600)
    return path


PASSWORD_LINE = (
    "dev:$7$101$Wa2Tse9X0rmABA6V$rs2qGOzOrwNQ8v9jECH4ogZJwGNfrFWZUeR7"
    "Ap44AgoEXSsikKd1BuJK5xPNrKLaG1bcDA2CeNlps4RzmTYjLw==\n"
)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_wrong_password_is_permanent_and_says_who(
    custom_mosquitto: CustomMosquitto, password_file: Path, protocol: str
) -> None:
    broker = custom_mosquitto(PASSWORDS.replace("{file}", str(password_file)))
    base = {
        "url": f"mqtt://127.0.0.1:{broker.port}",
        "protocol": protocol,
        "connect_timeout_s": PATIENCE_S / 2,
    }
    good = Connection(
        BrokerSettings.model_validate(base | {"username": "dev", "password": "right"}), client_id="a"
    )
    await good.start(wait=True)
    await good.stop()
    wrong = Connection(
        BrokerSettings.model_validate(base | {"username": "dev", "password": "wrong"}), client_id="a"
    )
    with pytest.raises(ConnectionFailedError, match=r"refuses the user 'dev': wrong .*password"):
        await wrong.start(wait=True, timeout_s=60)  # no use in waiting
    nobody = Connection(BrokerSettings.model_validate(base), client_id="a")
    with pytest.raises(ConnectionFailedError, match="refuses an anonymous client: set username"):
        await nobody.start(wait=True, timeout_s=60)
    patient = Connection(BrokerSettings.model_validate(base), client_id="a")
    await patient.start()
    failure = await next_of(patient.events(), Disconnected)
    assert isinstance(failure, Disconnected)
    assert failure.permanent
    assert failure.retry_in_s >= 10  # slowly: the next attempt will not help either
    await patient.stop()


async def test_waiting_bears_failures_that_pass(
    start: Callable[..., RunningBroker], connect: Connect, unused_tcp_port: int
) -> None:
    connecting = asyncio.create_task(
        connect(f"mqtt://127.0.0.1:{unused_tcp_port}", "a", reconnect_min_s=0.05, reconnect_max_s=0.1)
    )
    await asyncio.sleep(0)
    await asyncio.to_thread(start, "embedded", port=unused_tcp_port)
    assert (await connecting).is_connected


# ------------------------------------------------------------------------------------- MQTT 5 and 3.1.1


async def test_a_broker_that_refuses_version_5_gets_3_1_1(
    start: Callable[..., RunningBroker], connect: Connect
) -> None:
    connection = await connect(start("embedded").url, "a")
    event = await next_of(connection.events(), Connected)
    assert event == Connected(session_present=False, protocol=4, max_packet_bytes=None)


async def test_a_broker_that_ignores_version_5_gets_3_1_1_and_is_remembered(
    mosquitto: RunningBroker, connect: Connect, proxy_to: ProxyTo
) -> None:
    proxy = await proxy_to(mosquitto.port)
    proxy.mute_version = 5
    connection = await connect(proxy.url, "a", connect_timeout_s=1, reconnect_min_s=0.01)
    events = connection.events()
    event = await next_of(events, Connected)
    assert isinstance(event, Connected)
    assert event.protocol == 4
    assert proxy.levels[0] == 5
    before = len(proxy.levels)
    proxy.cut()
    await next_of(events, Connected)
    assert set(proxy.levels[before:]) == {4}  # it did not ask for version 5 again


async def test_a_version_that_was_asked_for_is_kept(start: Callable[..., RunningBroker]) -> None:
    broker = start("embedded")
    settings = BrokerSettings(url=broker.url, protocol="5", connect_timeout_s=PATIENCE_S / 2)
    connection = Connection(settings, client_id="a")
    with pytest.raises(ConnectionFailedError, match="does not know the MQTT version"):
        await connection.start(wait=True)


# ------------------------------------------------------------------------------------- losing the broker


async def test_it_connects_again_when_asked_with_a_new_last_will(
    start: Callable[..., RunningBroker], connect: Connect
) -> None:
    broker = start("embedded")
    numbers = count(1)
    other = await connect(broker.url, "b")
    await other.subscribe(["will"])
    connection = await connect(
        broker.url, "a", will=lambda: Will("will", b"%d" % next(numbers)), reconnect_min_s=0.02
    )
    events, heard = connection.events(), other.events()
    await next_of(events, Connected)
    connection.reconnect()
    await next_of(events, Disconnected)
    first = int((await next_message(heard)).payload)
    await next_of(events, Connected)
    connection.reconnect()
    assert int((await next_message(heard)).payload) > first


@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
async def test_it_comes_back_after_the_broker_was_killed(
    start: Callable[..., RunningBroker], connect: Connect, kind: str
) -> None:
    broker = start(kind)
    connection = await connect(broker.url, "a", reconnect_min_s=0.02, reconnect_max_s=0.1)
    other = await connect(broker.url, "b", reconnect_min_s=0.02, reconnect_max_s=0.1)
    await connection.subscribe(["m"])
    events, other_events = connection.events(), other.events()
    await next_of(events, Connected)
    await next_of(other_events, Connected)
    before = connection.traffic

    os.kill(broker.pid, signal.SIGKILL)
    broker.wait()
    lost = await next_of(events, Disconnected)
    assert isinstance(lost, Disconnected)
    assert str(broker.port) in lost.reason
    assert not connection.is_connected
    with pytest.raises(ConnectionFailedError):
        await connection.publish("m", b"x")

    await asyncio.to_thread(start, kind, port=broker.port)
    await next_of(events, Connected)
    await next_of(other_events, Connected)
    await other.publish("m", b"after")  # the subscription is back by the time that Connected is told
    assert (await next_message(events)).payload == b"after"
    assert connection.traffic.bytes_sent > before.bytes_sent
    assert connection.traffic.bytes_received > before.bytes_received


async def test_a_publish_that_is_under_way_fails_when_the_connection_breaks(
    mosquitto: RunningBroker, connect: Connect, proxy_to: ProxyTo
) -> None:
    proxy = await proxy_to(mosquitto.port)
    connection = await connect(proxy.url, "a")
    proxy.flowing.clear()
    publishing = [asyncio.create_task(connection.publish("m", b"x" * 50_000)) for _ in range(50)]
    await asyncio.sleep(0)
    proxy.cut()
    results = await asyncio.gather(*publishing, return_exceptions=True)
    assert all(isinstance(result, ConnectionFailedError) for result in results)


async def test_a_broker_that_acknowledges_nothing_is_left(
    mosquitto: RunningBroker, connect: Connect, proxy_to: ProxyTo
) -> None:
    proxy = await proxy_to(mosquitto.port)
    connection = await connect(proxy.url, "a", ack_timeout_s=0.2)
    proxy.flowing.clear()
    with pytest.raises(ConnectionFailedError, match=r"acknowledged nothing for 0.2 s"):
        await connection.publish("m", b"x")


async def test_a_silent_broker_is_noticed_by_keepalive(
    mosquitto: RunningBroker, connect: Connect, proxy_to: ProxyTo
) -> None:
    proxy = await proxy_to(mosquitto.port)
    connection = await connect(proxy.url, "a", keepalive_s=2)
    events = connection.events()
    await next_of(events, Connected)
    proxy.flowing.clear()
    lost = await next_of(events, Disconnected)
    assert isinstance(lost, Disconnected)
    assert "silent" in lost.reason


async def test_a_second_process_with_the_same_id_is_explained(
    mosquitto: RunningBroker, connect: Connect
) -> None:
    first = await connect(mosquitto.url, "same", reconnect_min_s=20, reconnect_max_s=30)
    await connect(mosquitto.url, "same")
    lost = await next_of(first.events(), Disconnected)
    assert isinstance(lost, Disconnected)
    # Debian's Mosquitto closes without a word; others say "session taken over".
    assert "client named 'same'" in lost.reason


async def test_waits_grow_with_jitter_and_are_reproducible(unused_tcp_port: int) -> None:
    settings = BrokerSettings(
        url=f"mqtt://127.0.0.1:{unused_tcp_port}", reconnect_min_s=0.25, reconnect_max_s=30
    )
    from fedmq_protocol.aio_reasons import Fault, Reason  # noqa: PLC0415

    def waits(seed: int) -> list[float]:
        connection = Connection(settings, client_id="a", rng=random.Random(seed))
        return [connection._delay(failures, Reason("", Fault.UNREACHABLE)) for failures in range(40)]

    assert waits(1) == waits(1)
    assert waits(1) != waits(2)
    for failures, wait in enumerate(waits(3)):
        mean = min(20.0, 0.25 * 2**failures)
        assert mean * 0.5 <= wait <= mean * 1.5 <= 30


# ------------------------------------------------------------------------------------- last wills


async def test_each_connection_can_carry_another_will(
    start: Callable[..., RunningBroker], connect: Connect, proxy_to: ProxyTo
) -> None:
    broker = start("embedded")
    proxy = await proxy_to(broker.port)
    epochs = count(1)
    watcher = await connect(broker.url, "w")
    await watcher.subscribe(["presence"])
    events = watcher.events()
    device = await connect(
        proxy.url,
        "d",
        will=lambda: Will("presence", b"epoch %d" % next(epochs)),
        reconnect_min_s=0.01,
        protocol="3.1.1",
    )
    proxy.cut()
    assert (await next_message(events)).payload == b"epoch 1"
    device_events = device.events()
    await next_of(device_events, Disconnected)
    await next_of(device_events, Connected)
    await device.stop(graceful=False)
    assert (await next_message(events)).payload == b"epoch 2"


async def test_stopping_sends_what_is_under_way(mosquitto: RunningBroker, connect: Connect) -> None:
    watcher = await connect(mosquitto.url, "w")
    await watcher.subscribe(["m"])
    device = await connect(mosquitto.url, "d", will=Will("m", b"will"), flush_timeout_s=PATIENCE_S)
    publishing = [asyncio.create_task(device.publish("m", b"%d" % number * 10_000)) for number in range(10)]
    await asyncio.sleep(0)
    await device.stop()
    await asyncio.gather(*publishing)
    events = watcher.events()
    received = [await next_message(events) for _ in range(10)]
    assert [message.payload[:1] for message in received] == [b"%d" % number for number in range(10)]


async def test_stop_ends_the_stream_and_can_be_repeated(mosquitto: RunningBroker, connect: Connect) -> None:
    connection = await connect(mosquitto.url, "a")

    async def consume() -> int:
        return len([event async for event in connection.events()])

    consuming = asyncio.create_task(consume())
    await asyncio.sleep(0)
    await connection.stop()
    await connection.stop()
    assert await consuming == 1  # Connected


async def test_stop_while_connecting() -> None:
    async with listening(None) as url:
        connection = Connection(BrokerSettings(url=url, connect_timeout_s=60), client_id="a")
        starting = asyncio.create_task(connection.start(wait=True))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            await connection.stop()


# ------------------------------------------------------------------------------------- publishing and subscribing

READ_ONLY = OPEN + "acl_file {acl}\n"


async def test_an_acl_denial_is_an_error_in_version_5(
    custom_mosquitto: CustomMosquitto, connect: Connect, tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    acl.chmod(0o600)
    broker = custom_mosquitto(READ_ONLY.replace("{acl}", str(acl)))
    connection = await connect(f"mqtt://127.0.0.1:{broker.port}", "a")
    with pytest.raises(RefusedError, match="not authorized"):
        await connection.publish("m", b"x")
    assert connection.is_connected


async def test_a_refused_filter_is_named_and_forgotten(
    start: Callable[..., RunningBroker], connect: Connect
) -> None:
    connection = await connect(start("embedded").url, "a")
    filters = [f"f/{number}" for number in range(1_001)]  # one more than the broker grants
    with pytest.raises(RefusedError, match=r"'f/1000'"):
        await connection.subscribe(filters)
    assert len(connection._filters) == 1_000
    await connection.publish("f/999", b"x")
    assert (await next_message(connection.events())).payload == b"x"


@pytest.mark.parametrize("topic_filter", ["", "a+", "a#/b", "#/a", "a/#/b", "a/b+/c", "a\0"])
async def test_a_filter_that_is_none_is_our_own_mistake(topic_filter: str) -> None:
    with pytest.raises(ValueError, match="is no topic filter"):
        await Connection(BrokerSettings(), client_id="a").subscribe([topic_filter])


async def test_a_will_that_cannot_be_made_does_not_end_in_silence(mosquitto: RunningBroker) -> None:
    def make_will() -> Will:
        raise ZeroDivisionError

    connection = Connection(BrokerSettings(url=mosquitto.url), client_id="a", will=make_will)
    await connection.start()
    with pytest.raises(ZeroDivisionError):
        await anext(connection.events())
    await connection.stop()
    again = Connection(BrokerSettings(url=mosquitto.url), client_id="a", will=make_will)
    with pytest.raises(ZeroDivisionError):
        await again.start(wait=True)


async def test_packets_above_the_limits_are_refused_before_they_are_sent(
    custom_mosquitto: CustomMosquitto, connect: Connect
) -> None:
    broker = custom_mosquitto(OPEN + "max_packet_size 5000\n")
    connection = await connect(f"mqtt://127.0.0.1:{broker.port}", "a")
    with pytest.raises(ValueError, match="above the broker's limit of 5000"):
        await connection.publish("m", bytes(5_000))
    other = await connect(f"mqtt://127.0.0.1:{broker.port}", "b", max_packet_bytes=2_000)
    with pytest.raises(ValueError, match="above max_packet_bytes of 2000"):
        await other.publish("m", bytes(2_000))
    await connection.publish("m", bytes(4_900))


async def test_a_packet_above_our_limit_breaks_the_connection(
    start: Callable[..., RunningBroker], connect: Connect
) -> None:
    """A broker of version 5 would not send it; one of 3.1.1 may, and memory is not taken for it."""
    broker = start("embedded")
    small = await connect(
        broker.url, "small", max_packet_bytes=10_000, reconnect_min_s=20, reconnect_max_s=30
    )
    await small.subscribe(["m"])
    other = await connect(broker.url, "other")
    await other.publish("m", bytes(20_000))
    lost = await next_of(small.events(), Disconnected)
    assert isinstance(lost, Disconnected)
    assert "above the limit of 10000" in lost.reason


async def test_many_filters_go_in_packets_of_eight(mosquitto: RunningBroker, connect: Connect) -> None:
    connection = await connect(mosquitto.url, "a")
    filters = [f"f/{number}" for number in range(30)]
    await connection.subscribe(filters)
    events = connection.events()
    for topic in filters:
        await connection.publish(topic, b"")
        assert (await next_message(events)).topic == topic
    await connection.unsubscribe(filters)


async def test_a_subscription_without_a_connection_waits_for_one(
    start: Callable[..., RunningBroker], connect: Connect, unused_tcp_port: int
) -> None:
    url = f"mqtt://127.0.0.1:{unused_tcp_port}"
    connection = await connect(url, "a", wait=False, reconnect_min_s=0.02, reconnect_max_s=0.05)
    await connection.subscribe(["m", "n"])
    await connection.unsubscribe(["n"])
    await asyncio.to_thread(start, "embedded", port=unused_tcp_port)
    events = connection.events()
    await next_of(events, Connected)
    await connection.publish("n", b"unwanted")
    await connection.publish("m", b"wanted")
    assert (await next_message(events)).payload == b"wanted"


# ------------------------------------------------------------------------------------- back-pressure


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
async def test_a_slow_consumer_loses_nothing_and_stays_small(
    start: Callable[..., RunningBroker], connect: Connect, kind: str, protocol: str
) -> None:
    """500 messages of 50 KB, 25 MB, while the inbox may hold 0.5 MB."""
    if kind == "embedded" and protocol == "5":
        pytest.skip("the embedded broker speaks 3.1.1 only")
    broker = start(kind)
    slow = await connect(broker.url, "slow", receive_maximum=5, max_packet_bytes=100_000, protocol=protocol)
    await slow.subscribe(["m"])
    fast = await connect(broker.url, "fast")
    publishing = asyncio.create_task(_publish_numbered(fast, 500, 50_000))
    events = slow.events()
    most_held = 0
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reports: list[asyncio.Task[None]] = []
    for number in range(500):
        message = await next_message(events)
        assert int.from_bytes(message.payload[:4]) == number
        if number % 50 == 0:
            reports.append(asyncio.create_task(slow.publish("progress", b"x" * 1_000)))
        await asyncio.sleep(0.0005)
        most_held = max(most_held, slow._inbox._bytes)
    await asyncio.gather(publishing, *reports)
    assert most_held <= 4 * (5 * 100_000) + 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 40_000


async def _publish_numbered(connection: Connection, messages: int, size: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(messages):
            group.create_task(connection.publish("m", number.to_bytes(4) + bytes(size - 4)))


async def test_a_consumer_that_asks_for_nothing_stops_the_reading(
    start: Callable[..., RunningBroker], connect: Connect
) -> None:
    broker = start("embedded")
    stuck = await connect(broker.url, "stuck", receive_maximum=2, max_packet_bytes=20_000, protocol="3.1.1")
    await stuck.subscribe(["m"], qos=0)
    other = await connect(broker.url, "other")
    for _ in range(10):
        await other.publish("m", bytes(10_000), qos=0)
    await other.publish("m", b"last")
    await stuck.subscribe(["other"])  # an answer is fetched from behind what waits
    events = stuck.events()
    received = [await next_message(events) for _ in range(11)]
    assert received[-1].payload == b"last"


async def test_a_message_is_acknowledged_when_the_next_is_asked_for(
    mosquitto: RunningBroker, connect: Connect
) -> None:
    connection = await connect(mosquitto.url, "a", receive_maximum=1)
    await connection.subscribe(["m"])
    for number in range(3):
        await connection.publish("m", b"%d" % number)
    events = connection.events()
    first = await next_message(events)
    assert first.payload == b"0"
    assert not connection._inbox._events  # receive maximum 1: the broker holds the second back
    second = await next_message(events)
    assert second.payload == b"1"
    second.ack()
    second.ack()  # twice does no harm
    assert (await next_message(events)).payload == b"2"


def test_messages_compare_by_what_they_carry() -> None:
    assert Message("t", b"p", _acknowledge=print) == Message("t", b"p")
    Message("t", b"p").ack()


# ------------------------------------------------------------------------------------- weight


async def test_a_round_trip_costs_well_under_a_millisecond_of_cpu(
    mosquitto: RunningBroker, connect: Connect
) -> None:
    connection = await connect(mosquitto.url, "a")
    await connection.subscribe(["m"])
    events = connection.events()

    async def round_trips(number: int) -> None:
        for _ in range(number):
            await connection.publish("m", bytes(10_000))
            await next_message(events)

    await round_trips(20)
    costs_s = []
    for _ in range(4):  # who shares the processor makes some of them dearer
        before = time.process_time()
        await round_trips(100)
        costs_s.append((time.process_time() - before) / 100)
    assert min(costs_s) < 0.001


# ------------------------------------------------------------------------------------- hostile brokers


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_whatever_a_broker_sends_ends_in_an_event(protocol: str) -> None:
    """After a proper CONNACK come random packets of every type: the connection ends, and nothing else breaks."""
    rng = random.Random(5)
    connack = b"\x20\x03\x00\x00\x00" if protocol == "5" else b"\x20\x02\x00\x00"
    for packet_type in [*range(16)] * 4:
        body = rng.randbytes(rng.randrange(60))
        garbage = bytes([packet_type << 4 | rng.randrange(16), len(body)]) + body
        async with listening(connack + garbage) as url:
            settings = BrokerSettings.model_validate(
                {"url": url, "protocol": protocol, "reconnect_min_s": 20}
            )
            connection = Connection(settings, client_id="a")
            await connection.start()
            lost = await next_of(connection.events(), Disconnected)  # as the server closes, at the latest
            assert isinstance(lost, Disconnected)
            assert "\n" not in lost.reason
            await connection.stop()


async def test_a_session_that_paho_knows_to_be_lost_is_over(
    mosquitto: RunningBroker, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever restores subscriptions asks for a reason that is not there yet."""
    connection = await connect(mosquitto.url, "device")
    session = connection._session
    assert session is not None
    monkeypatch.setattr(session._client, "subscribe", lambda _: (MQTTErrorCode.MQTT_ERR_NO_CONN, None))
    with pytest.raises(ConnectionFailedError):
        await session.subscribe(["x"], 1)
    assert session.ended.done()
