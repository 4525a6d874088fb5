"""After a flood the coordinator finds out whether it still hears, and connects anew where it does not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fedmq_coordinator.shell.echo import Echo, Way
from fedmq_protocol.aio import RefusedError
from fedmq_protocol.errors import ConnectionFailedError
from tests.broker_fixtures import PATIENCE_S, CustomBroker
from tests.coordinator.shell.doubles import VirtualDevice, coordinator, eventually

CustomMosquitto = Callable[[str], CustomBroker]
CROWDED = """listener {port} 127.0.0.1
allow_anonymous true
max_queued_messages 20
max_inflight_messages 20
"""


@contextlib.asynccontextmanager
async def at_work(
    answered: str | None = None, *, waits: bool = True, answer_s: float = 0.01, error: Exception | None = None
) -> AsyncIterator[tuple[Echo, list[str]]]:
    """An echo that is connected; one of its ways brings an answer, or fails; and what happens."""
    happened: list[str] = []

    def way(name: str) -> Way:
        async def ask() -> None:
            happened.append(name)
            if error is not None:
                raise error
            if name == answered:
                asyncio.get_running_loop().call_soon(echo.heard)

        return ask

    echo = Echo(
        [way("quiet"), way("loud")],
        lambda: happened.append("reconnect"),
        lambda: waits,
        silence_s=0.02,
        answer_s=answer_s,
    )
    echo.set_connected(True)
    task = asyncio.create_task(echo.run())
    yield echo, happened
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(accept: Callable[[], bool]) -> None:
    async def look() -> bool:
        return accept()

    await eventually(look, bool)


@pytest.mark.parametrize("waits", [False, True])
async def test_where_nobody_is_waited_for_or_nothing_can_be_heard_nothing_is_asked(*, waits: bool) -> None:
    async with at_work("quiet", waits=waits) as (echo, happened):
        echo.set_connected(not waits)
        await asyncio.sleep(0.1)
        assert happened == []


async def test_what_is_delivered_is_enough_and_is_asked_for_less_and_less() -> None:
    asked: list[float] = []

    async def ask() -> None:
        asked.append(time.monotonic())
        asyncio.get_running_loop().call_soon(echo.heard)

    def fail() -> None:
        pytest.fail("something came")

    echo = Echo([ask], fail, lambda: True, silence_s=0.02, answer_s=PATIENCE_S)
    echo.set_connected(True)
    task = asyncio.create_task(echo.run())
    await until(lambda: len(asked) >= 4)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps[0] > 0.04
    assert gaps[1] > 0.08
    assert gaps[2] > 0.16


async def test_where_the_quiet_way_brings_nothing_the_loud_one_may() -> None:
    async with at_work("loud", answer_s=0.2) as (_, happened):
        await until(lambda: len(happened) >= 4)
        assert happened[:4] == ["quiet", "loud"] * 2


async def test_where_no_way_brings_anything_it_connects_anew() -> None:
    async with at_work() as (_, happened):
        await until(lambda: happened.count("reconnect") == 2)
        assert happened[:6] == ["quiet", "loud", "reconnect"] * 2


async def test_where_connecting_anew_brings_nothing_either_it_is_done_less_and_less() -> None:
    done: list[float] = []

    async def ask() -> None:
        pass

    def reconnect() -> None:
        done.append(time.monotonic())
        for connected in (False, True):
            echo.set_connected(connected)

    echo = Echo([ask], reconnect, lambda: True, silence_s=0.02, answer_s=0.0)
    echo.set_connected(True)
    task = asyncio.create_task(echo.run())
    await until(lambda: len(done) >= 4)
    assert echo._least_s > 0.16
    echo.heard(sought=True)
    assert echo._least_s == 0.02
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gaps = [later - earlier for earlier, later in pairwise(done)]
    assert gaps[0] > 0.04
    assert gaps[1] > 0.08
    assert gaps[2] > 0.16


async def test_what_is_heard_is_noticed_however_patient_it_has_become() -> None:
    async with at_work(waits=False) as (echo, _):
        patient = asyncio.create_task(echo._is_silent_for(1_000 * PATIENCE_S))
        await asyncio.sleep(0)
        echo.heard()
        async with asyncio.timeout(PATIENCE_S):
            assert not await patient


async def test_a_broker_that_has_not_acknowledged_yet_is_waited_for() -> None:
    never = asyncio.Event()

    async def ask() -> None:
        await never.wait()

    echo = Echo([ask], never.set, lambda: True, silence_s=0.01, answer_s=0.01)
    echo.set_connected(True)
    task = asyncio.create_task(echo.run())
    await asyncio.sleep(0.2)
    assert not never.is_set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("error", [ConnectionFailedError("lost"), RefusedError("not authorized")])
async def test_what_could_not_be_asked_proves_nothing(error: Exception) -> None:
    async with at_work(error=error) as (_, happened):
        await until(lambda: len(happened) >= 4)
        assert "reconnect" not in happened


async def test_a_connection_that_is_lost_meanwhile_is_asked_no_more() -> None:
    async with at_work(answer_s=PATIENCE_S) as (echo, happened):
        await until(lambda: happened == ["quiet"])
        echo.set_connected(False)
        await asyncio.sleep(0.1)
        assert happened == ["quiet"]


async def test_a_coordinator_that_a_flood_has_made_deaf_hears_again(
    custom_mosquitto: CustomMosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it stands still, more is published than the sockets hold, and Mosquitto counts what it drops as sent."""
    defaults = Echo.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "silence_s", 0.5)
    monkeypatch.setitem(defaults, "answer_s", 1.0)
    broker = custom_mosquitto(CROWDED)
    url = f"mqtt://127.0.0.1:{broker.port}"

    def flood() -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="flooder")
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        topic = "fedmq/v1/home/dev/flooder/up/hello"
        for number in range(3_000):
            client.publish(topic, bytes(10_000), qos=0)
            if number >= 2_000 and number % 20 == 0:
                client.publish(topic, b"lost", qos=1)
        client.publish("done", b"", qos=1).wait_for_publish(PATIENCE_S)
        client.disconnect()
        client.loop_stop()

    flooding = threading.Thread(target=flood)
    async with coordinator(tmp_path, url) as running:
        await running.connected()
        settings = {"selection": {"min_available_devices": 1}}
        await running.ask("start_run", "find.py", name="r", settings=settings)
        flooding.start()
        while flooding.is_alive():
            time.sleep(0.1)  # noqa: ASYNC251  # nothing of the coordinator moves
        async with VirtualDevice("dev-0", url).online():
            assert (await running.until("r", "finished")).version == 3
