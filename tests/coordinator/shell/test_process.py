"""A coordinator as a process of its own: signals end it well, a kill costs nothing, and it stays light."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fedmq_broker.runner import RunningBroker
from fedmq_coordinator.core.facts import UpdateAccepted
from fedmq_coordinator.shell.client import Client
from fedmq_coordinator.shell.store import Journal
from tests.coordinator.shell.doubles import TARGET, VirtualDevice, eventually, loss_of

PROGRAM = """
import asyncio, logging, sys
from pathlib import Path
from fedmq_coordinator.shell.main import run_coordinator_forever
from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_protocol.broker_settings import BrokerSettings
from tests.coordinator.shell.doubles import PLAIN, FakeModelHost

async def main():
    settings = CoordinatorSettings(
        federation="home", broker=BrokerSettings(url=sys.argv[1]), state_dir=Path(sys.argv[2]),
        listen="127.0.0.1:0", run=PLAIN,
    )
    await run_coordinator_forever(settings, model_host=FakeModelHost())
    print("torch" in sys.modules)

logging.basicConfig(level=logging.INFO)
asyncio.run(main())
"""
ROOT = Path(__file__).parents[3]
MAX_RESIDENT_MB = 200
"""The promise is 300 MB with a real model; this one has 24 parameters."""


@contextlib.asynccontextmanager
async def process(broker: RunningBroker, state_dir: Path) -> AsyncIterator[tuple[Process, Client]]:
    """A coordinator whose API is up; killed at the end if it is still there."""
    (state_dir / "api.json").unlink(missing_ok=True)
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, broker.url, str(state_dir), cwd=ROOT, stdout=PIPE, stderr=PIPE
    )

    async def is_up() -> bool:
        return (state_dir / "api.json").exists() or running.returncode is not None

    try:
        await eventually(is_up, bool)
        with Client(state_dir) as client:
            yield running, client
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


def peak_resident_mb(pid: int) -> float:
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024


async def test_a_signal_ends_it_well_and_it_stays_light(mosquitto: RunningBroker, tmp_path: Path) -> None:
    device, other = (VirtualDevice(f"dev-{number}", mosquitto.url) for number in range(2))
    async with process(mosquitto, tmp_path) as (running, client), device.online(), other.online():
        run = await asyncio.to_thread(client.start_run, "find.py")
        await eventually(lambda: asyncio.to_thread(client.run, run), lambda view: view.state == "finished")
        await asyncio.to_thread(client.report, run)
        assert peak_resident_mb(running.pid) < MAX_RESIDENT_MB
        running.terminate()
        stdout, stderr = await running.communicate()
    assert running.returncode == 0, stderr.decode()
    assert stdout == b"False\n"  # no torch
    assert b"Traceback" not in stderr
    assert not (tmp_path / "api.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_both_signals_end_it_without_a_broker_too(
    mosquitto: RunningBroker, tmp_path: Path, number: signal.Signals
) -> None:
    mosquitto.stop()
    async with process(mosquitto, tmp_path) as (running, _):
        running.send_signal(number)
        async with asyncio.timeout(60):
            _, stderr = await running.communicate()
    assert running.returncode == 0, stderr.decode()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_in_every_round_it_goes_on_and_counts_each_update_once(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    rounds = 5
    devices = [VirtualDevice(f"dev-{number}", mosquitto.url) for number in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for device in devices:
            await stack.enter_async_context(device.online())
        async with process(mosquitto, tmp_path) as (running, client):
            settings = {"rounds": rounds, "selection": {"min_available_devices": 3, "deadline_factor": 0}}
            await asyncio.to_thread(client.start_run, "find.py", name="r", settings=settings)
            running.kill()
        for number in range(1, rounds):
            async with process(mosquitto, tmp_path) as (running, client):
                await eventually(
                    lambda asked=client: asyncio.to_thread(asked.run, "r"),  # type: ignore[misc]
                    lambda view, past=number: view.round > past or view.version >= past,  # type: ignore[misc]
                )
                running.kill()
        async with process(mosquitto, tmp_path) as (running, client):
            await eventually(
                lambda: asyncio.to_thread(client.run, "r"), lambda view: view.state == "finished"
            )
            report = await asyncio.to_thread(client.report, "r")
            for device in devices:
                await device.receives(rounds)
    assert report.rounds[-1].loss == pytest.approx(loss_of(TARGET * (1 - 0.5**rounds)), rel=1e-3)
    journal = Journal.open(tmp_path, federation="home")
    counted = [(fact.device, fact.counter) for fact in journal.read() if isinstance(fact, UpdateAccepted)]
    journal.close()
    assert len(counted) == len(set(counted)) == 3 * rounds
    for device in devices:
        accepted = [receipt.counter for receipt in device.receipts if receipt.outcome == "accepted"]
        assert sorted(set(accepted)) == list(range(1, rounds + 1))
