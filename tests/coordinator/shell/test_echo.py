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

from fedmq_coordinator.shell.echo import Echo
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
    answers: int | None, *, waits: bool = True, answer_s: float = 0.01
) -> AsyncIterator[tuple[Echo, list[str]]]:
    """An echo that is connected, and comes back from the n-th time on or never; and what happens."""
    happened: list[str] = []

    def say() -> None:
        happened.append("say")
        if answers is not None and len(happened) >= answers:
            asyncio.get_running_loop().call_soon(echo.heard)

    echo = Echo(say, lambda: happened.append("reconnect"), lambda: waits, silence_s=0.02, answer_s=answer_s)
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
async def test_where_nobody_is_waited_for_or_nothing_can_be_heard_nothing_is_said(*, waits: bool) -> None:
    async with at_work(1, waits=waits) as (echo, happened):
        echo.set_connected(not waits)
        await asyncio.sleep(0.1)
        assert happened == []


async def test_what_comes_back_is_enough_the_second_time_too_and_is_asked_for_less_and_less() -> None:
    said: list[float] = []

    def say() -> None:
        said.append(time.monotonic())
        if len(said) > 1:
            asyncio.get_running_loop().call_soon(echo.heard)

    echo = Echo(say, lambda: pytest.fail("it came back"), lambda: True, silence_s=0.02, answer_s=0.1)
    echo.set_connected(True)
    task = asyncio.create_task(echo.run())
    await until(lambda: len(said) >= 2)
    echo._answer_s = PATIENCE_S
    await until(lambda: len(said) >= 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gaps = [later - earlier for earlier, later in pairwise(said)]
    assert gaps[1] > 0.04
    assert gaps[2] > 0.08
    assert gaps[3] > 0.16


async def test_what_never_comes_back_is_a_reason_to_connect_anew() -> None:
    async with at_work(None) as (_, happened):
        await until(lambda: happened.count("reconnect") == 2)
        assert happened[:6] == ["say", "say", "reconnect"] * 2


async def test_a_connection_that_is_lost_meanwhile_is_asked_no_more() -> None:
    async with at_work(None, answer_s=PATIENCE_S) as (echo, happened):
        await until(lambda: happened == ["say"])
        echo.set_connected(False)
        await asyncio.sleep(0.1)
        assert happened == ["say"]


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
