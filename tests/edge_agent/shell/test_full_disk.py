"""A real agent with a real trainer on a real, small disk that fills up, or turns read-only, and recovers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.core.state import AgentState, load_state
from fedmq_edge_agent.shell.disk import SPARE_BYTES
from fedmq_protocol.messages import Presence, Report
from tests.broker_fixtures import Connect
from tests.edge_agent.scripted import EVERYBODY
from tests.edge_agent.shell.on_air import OnAir
from tests.edge_agent.shell.real_agent import Launch, on_air_with

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(900)]

DISK_BYTES = 1 << 20


class SmallDisk:
    """A tmpfs of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "somebody-elses-logs"

    @property
    def state_dir(self) -> Path:
        return self.folder / "dev-1"

    @property
    def state(self) -> AgentState:
        return load_state((self.state_dir / "state").read_bytes())

    def fill(self) -> None:
        """To the last byte."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 14, 1 << 10, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def make_room(self) -> None:
        self._filler.unlink()

    async def remount(self, how: str) -> None:
        """The kernel does not while a file is being written: then once more."""
        command = ["mount", "-o", f"remount,{how}", str(self.folder)]
        async with asyncio.timeout(60):
            while (await asyncio.to_thread(subprocess.run, command, capture_output=True)).returncode:  # noqa: ASYNC110 - of the kernel's
                await asyncio.sleep(0.05)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small disk of its own needs mount, and leave to use it")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def settled(disk: SmallDisk, counter: int) -> None:
    """Until an update has left the outbox on disk."""
    async with asyncio.timeout(60):
        while any(one.header.counter == counter for one in disk.state.runs["r1"].pending):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


async def problem(on_air: OnAir, says: str) -> Presence:
    return await on_air.wait_for(Presence, lambda presence: presence.online and says in presence.problem)


async def healthy(on_air: OnAir) -> Presence:
    return await on_air.wait_for(Presence, lambda presence: presence.online and not presence.problem)


async def test_a_full_disk_is_said_and_nothing_is_lost_or_sent_twice(
    settings: AgentSettings, connect: Connect, launch: Launch, task: Path, small_disk: SmallDisk
) -> None:
    on_air, coordinator = await on_air_with(await connect(settings.broker.url, "coordinator"), task)
    settings = settings.model_copy(
        update={"task": str(task), "data": {"partition_id": 0}, "state_dir": small_disk.state_dir}
    )
    await on_air.announce(lease=1, cohort=EVERYBODY)
    agent = launch(settings)
    first = await on_air.receive("dev-1")
    small_disk.fill()
    # The receipt can be written down, in the room that was spared for it.
    assert await on_air.accept("dev-1", first)
    await settled(small_disk, first.header.counter)
    assert not (small_disk.state_dir / "spare").exists()
    small_disk.fill()
    await on_air.say(coordinator.lease("dev-1", 2))
    assert (await on_air.wait_for(Report, lambda report: report.lease == 2)).code == "busy"
    told = await problem(on_air, "the disk is full; make room on it: cannot write")
    assert told.tasks, "it is still there, and says what it could do"
    await on_air.say(coordinator.lease("dev-1", 3))
    assert (await on_air.wait_for(Report, lambda report: report.lease == 3)).code == "busy"
    before = small_disk.state.runs["r1"]
    assert (before.counter, before.pending) == (first.header.counter, ())
    small_disk.make_room()
    await healthy(on_air)
    assert (small_disk.state_dir / "spare").stat().st_size == SPARE_BYTES
    await on_air.say(coordinator.lease("dev-1", 4))
    second = await on_air.receive("dev-1", after=first.header.counter)
    assert (second.header.counter, second.header.lease) == (first.header.counter + 1, 4)
    assert await on_air.accept("dev-1", second)
    await settled(small_disk, second.header.counter)
    assert agent.process.poll() is None
    assert "the disk takes what is written again" in agent.log.read_text()
    assert not list(small_disk.state_dir.rglob("*.tmp")) + list(small_disk.state_dir.rglob(".*.part"))
    await on_air.close()


async def test_a_disk_that_turns_read_only_is_said_and_the_outbox_goes_on(
    settings: AgentSettings, connect: Connect, launch: Launch, task: Path, small_disk: SmallDisk
) -> None:
    on_air, coordinator = await on_air_with(await connect(settings.broker.url, "coordinator"), task)
    settings = settings.model_copy(
        update={"task": str(task), "data": {"partition_id": 0}, "state_dir": small_disk.state_dir}
    )
    await on_air.announce(lease=1, cohort=EVERYBODY)
    agent = launch(settings)
    first = await on_air.receive("dev-1")
    await small_disk.remount("ro")
    await on_air.say(coordinator.lease("dev-1", 2))
    await problem(on_air, "the disk is mounted read-only")
    again = await on_air.receive("dev-1")
    assert (again.header.counter, again.data) == (first.header.counter, first.data), "it is sent again"
    assert await on_air.accept("dev-1", again)
    # Killed and started again on a disk that is still read-only, it says so at once, and sends what it has.
    agent.kill()
    agent = launch(settings)
    await problem(on_air, "the disk is mounted read-only")
    last = await on_air.receive("dev-1")
    assert (last.header.counter, last.data) == (first.header.counter, first.data), "the receipt was not kept"
    assert not await on_air.accept("dev-1", last)
    await small_disk.remount("rw")
    await healthy(on_air)
    await settled(small_disk, first.header.counter)
    await on_air.say(coordinator.lease("dev-1", 3))
    second = await on_air.receive("dev-1", after=first.header.counter)
    assert second.header.lease == 3
    assert second.header.counter > first.header.counter
    assert await on_air.accept("dev-1", second)
    assert agent.process.poll() is None
    await on_air.close()
