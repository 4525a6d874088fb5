"""A whole coordinator whose journal lies on a server: the server goes away, comes back, or stays away."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

from fedmq_broker.runner import RunningBroker
from fedmq_coordinator.core.facts import UpdateAccepted
from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_protocol.errors import StoreError
from tests.coordinator.shell.doubles import TARGET, VirtualDevice, coordinator, eventually, loss_of
from tests.coordinator.shell.places import Place
from tests.postgres_fixtures import PostgresServer


async def test_a_run_goes_on_over_restarts_of_the_server(
    mosquitto: RunningBroker, postgres_place: Place, postgres: PostgresServer
) -> None:
    rounds = 8
    devices = [VirtualDevice(f"dev-{number}", mosquitto.url) for number in range(3)]
    async with (
        contextlib.AsyncExitStack() as stack,
        coordinator(postgres_place.state_dir, mosquitto.url, database=postgres_place.settings) as running,
    ):
        for device in devices:
            await stack.enter_async_context(device.online())
        settings = {"rounds": rounds, "selection": {"min_available_devices": 3, "deadline_factor": 0}}
        await running.ask("start_run", "find.py", name="r", settings=settings)
        for version in (2, 5):
            await eventually(
                lambda: running.ask("run", "r"),
                lambda view, past=version: view.version >= past,  # type: ignore[misc]
            )
            await asyncio.to_thread(postgres.stop, "immediate")
            await asyncio.to_thread(postgres.start)
        await running.until("r", "finished")
        report = await running.ask("report", "r")
    assert_allclose(report.rounds[-1].loss, loss_of(TARGET * (1 - 0.5**rounds)), rtol=1e-3)
    counted = [
        (fact.device, fact.counter) for fact in postgres_place.read() if isinstance(fact, UpdateAccepted)
    ]
    assert len(counted) == len(set(counted)) == 3 * rounds


async def test_a_new_journal_beside_an_old_one_is_said(
    mosquitto: RunningBroker, postgres_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    folder = postgres_place.state_dir
    async with coordinator(folder, mosquitto.url):
        assert "is new, but the key" not in caplog.text
    async with coordinator(folder, mosquitto.url, database=postgres_place.settings):
        assert f"the journal {postgres_place.name} is new, but the key {folder / 'key'} is not" in caplog.text
        assert f"; {folder / 'journal.sqlite'}, which is there, is not used" in caplog.text
    caplog.clear()
    async with coordinator(folder, mosquitto.url, database=postgres_place.settings):
        assert "is new, but" not in caplog.text


@pytest.mark.parametrize("timeout_s", [0.5, 600.0])
async def test_a_server_that_stays_away_ends_it_in_time_or_when_it_is_asked_to(
    mosquitto: RunningBroker, postgres: PostgresServer, tmp_path: Path, timeout_s: float
) -> None:
    database = DatabaseSettings(url=postgres.create_database(), timeout_s=timeout_s)
    device = VirtualDevice("dev-0", mosquitto.url)

    async def left_alone() -> None:
        async with coordinator(tmp_path, mosquitto.url, database=database) as running:
            await running.connected()
            await asyncio.to_thread(postgres.stop, "immediate")
            async with device.online():  # an enrolment is a fact
                if timeout_s < 10:
                    await asyncio.wait([running.task], timeout=60)
                else:
                    await eventually(
                        lambda: asyncio.sleep(0, running.task.done()),
                        lambda done: done or device.connection.traffic.bytes_sent > 300,
                    )

    try:
        async with asyncio.timeout(90):  # far less than the patience of the one that is asked to end
            if timeout_s < 10:
                with pytest.raises(
                    StoreError, match=r"cannot write to the journal postgresql://.* s of trying"
                ):
                    await left_alone()
            else:
                await left_alone()
    finally:
        await asyncio.to_thread(postgres.start)
