"""Two coordinators on one store, as processes of their own: the newer goes on, the older ends and leaves no trace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fedmq_broker.runner import RunningBroker
from fedmq_coordinator.core.facts import EpochBegun, RunEnded, UpdateAccepted, VersionPublished
from fedmq_coordinator.shell.client import Client
from fedmq_protocol.envelope import open_envelope
from fedmq_protocol.messages import Status
from fedmq_protocol.topics import Topics
from tests.broker_fixtures import Connect, next_message
from tests.coordinator.shell.doubles import VirtualDevice, coordinator, eventually
from tests.coordinator.shell.places import Place

PROGRAM = """
import asyncio, logging, sys
from pathlib import Path
from fedmq_coordinator.shell.main import run_coordinator_forever
from fedmq_coordinator.shell.settings import CoordinatorSettings, DatabaseSettings
from fedmq_coordinator.shell.store_fence import FencedError
from fedmq_protocol.broker_settings import BrokerSettings
from tests.coordinator.shell.doubles import PLAIN, FakeModelHost

broker, state_dir, database, take_over = sys.argv[1:]
settings = CoordinatorSettings(
    federation="home", broker=BrokerSettings(url=broker, reconnect_min_s=0.05, reconnect_max_s=0.2),
    state_dir=Path(state_dir), database=DatabaseSettings(url=database),
    listen="127.0.0.1:0", run=PLAIN,
)
logging.basicConfig(level=logging.INFO)
try:
    asyncio.run(run_coordinator_forever(settings, model_host=FakeModelHost(), take_over=take_over == "yes"))
except FencedError as error:
    print("fenced:", error)
"""
# The older has epoch 1; taking over fences it out with epoch 2, and the newer begins with the next.
ROOT = Path(__file__).parents[3]
TOPICS = Topics("home")


@contextlib.asynccontextmanager
async def process(
    broker: RunningBroker, place: Place, *, take_over: bool = False
) -> AsyncIterator[tuple[Process, Client]]:
    """A coordinator on PostgreSQL whose API is up; killed at the end if it is still there."""
    assert place.settings is not None
    given = [broker.url, str(place.state_dir), place.settings.url, "yes" if take_over else "no"]
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *given, cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    api = place.state_dir / "api.json"

    async def is_up() -> bool:
        return api.exists() or running.returncode is not None

    try:
        await eventually(is_up, bool)
        with Client(place.state_dir) as client:
            yield running, client
    finally:
        if running.returncode is None:
            running.kill()
            await running.communicate()


@pytest.mark.parametrize("wakes_up", ["in the run", "after it"])
async def test_a_stopped_coordinator_wakes_up_after_another_has_taken_over(
    mosquitto: RunningBroker, postgres_place: Place, connect: Connect, wakes_up: str
) -> None:
    rounds = 12
    # However late the older one is stopped, the run is not over: it is the newer one that ends it.
    devices = [VirtualDevice(f"dev-{number}", mosquitto.url, waits_at=rounds - 3) for number in range(3)]
    settings = {"rounds": rounds, "selection": {"min_available_devices": 3, "deadline_factor": 0}}
    other = postgres_place.elsewhere
    async with contextlib.AsyncExitStack() as stack:
        for device in devices:
            await stack.enter_async_context(device.online())
        older, client = await stack.enter_async_context(process(mosquitto, postgres_place))
        await asyncio.to_thread(client.start_run, "find.py", name="r", settings=settings)
        await eventually(lambda: asyncio.to_thread(client.run, "r"), lambda view: view.version >= 3)
        older.send_signal(signal.SIGSTOP)
        other.state_dir.mkdir()
        shutil.copy(postgres_place.state_dir / "key", other.state_dir / "key")
        newer, asked = await stack.enter_async_context(process(mosquitto, other, take_over=True))
        for device in devices:
            device.may_go_on.set()
        if wakes_up == "in the run":
            older.send_signal(signal.SIGCONT)
        await eventually(lambda: asyncio.to_thread(asked.run, "r"), lambda view: view.state == "finished")
        if wakes_up != "in the run":  # else it may have ended already
            older.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            stdout, stderr = await older.communicate()
        assert (older.returncode, stderr.decode().count("Traceback")) == (0, 0), stderr.decode()
        assert re.fullmatch(
            rf"fenced: another coordinator \(pid {newer.pid} on \S+\) has begun epoch 3 on .*\n",
            stdout.decode(),
        )
        # The older one may have put the newer one out for a moment before it asked the store.
        await eventually(lambda: _retained_status(connect, mosquitto), lambda seen: seen == (True, 3))
        newer.terminate()
        await newer.communicate()
    journal = other.open()
    facts = list(journal.read())
    journal.close()
    (took_over,) = (number for number, fact in enumerate(facts) if fact == EpochBegun(at=fact.at, epoch=3))
    assert {fact.epoch for fact in facts[:took_over] if isinstance(fact, EpochBegun)} == {1}
    assert isinstance(facts[-1], RunEnded) or any(isinstance(fact, RunEnded) for fact in facts[took_over:])
    versions = [fact.version for fact in facts if isinstance(fact, VersionPublished)]
    assert versions == list(range(rounds + 1))
    counted = [(fact.device, fact.counter) for fact in facts if isinstance(fact, UpdateAccepted)]
    assert len(counted) == len(set(counted)) == 3 * rounds


async def test_a_coordinator_without_the_federations_key_says_so(
    mosquitto: RunningBroker, postgres_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    said = "is not the one that this federation began with"
    for place in (postgres_place, postgres_place, postgres_place.elsewhere):
        assert said not in caplog.text
        async with coordinator(place.state_dir, mosquitto.url, database=place.settings):
            pass
    assert f"the key in {place.state_dir / 'key'} {said}" in caplog.text


async def _retained_status(connect: Connect, broker: RunningBroker) -> tuple[bool, int]:
    watcher = await connect(broker.url, f"watcher-{os.urandom(4).hex()}")
    await watcher.subscribe([TOPICS.coordinator_status])
    message = await next_message(watcher.events(), timeout_s=60.0)
    body = open_envelope(message.topic, message.payload).body
    assert isinstance(body, Status)
    await watcher.stop()
    return body.online, body.session
