"""The status file: written by a running agent, read by whoever asks, and honest about an agent that is gone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.shell import status as module
from fedmq_edge_agent.shell.status import FILE, FORMAT, SILENT_S, Found, StatusFile, boot_time, find, start_of
from tests.edge_agent.scripted import EVERYBODY
from tests.edge_agent.shell.conftest import StartAgent, StartProcess
from tests.edge_agent.shell.on_air import OnAir


async def until(state_dir: Path, holds: Callable[[Found], bool]) -> Found:
    """Look until the file says something."""
    async with asyncio.timeout(60):
        while not holds(found := find(state_dir)):  # noqa: ASYNC110 - a file that another writes
            await asyncio.sleep(0.02)
    return found


def says(**wanted: object) -> Callable[[Found], bool]:
    return lambda found: found.status is not None and wanted.items() <= found.status.items()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GAP_S", 0.05)


@pytest.mark.mosquitto
async def test_it_follows_what_the_device_does(
    on_air: OnAir, settings: AgentSettings, start_agent: StartAgent
) -> None:
    await on_air.announce(inline=False)
    agent = await start_agent(settings)
    found = await until(settings.state_dir, says(state="waiting", run="r1", version=0))
    assert found.running
    said = found.status
    assert said is not None
    assert (said["device"], said["pid"], said["connected"], said["problem"]) == (
        "dev-1",
        os.getpid(),
        True,
        "",
    )
    assert "waiting for a lease" in said["waiting"]
    assert said["sent_bytes"] > 100
    await on_air.announce(chunks=False, lease=1, cohort=EVERYBODY)
    update = await on_air.receive("dev-1")
    await until(settings.state_dir, says(updates_waiting=1, updates_done=1))
    await on_air.accept("dev-1", update)
    await until(settings.state_dir, says(updates_waiting=0, updates_done=1))
    await agent.stop()
    assert find(settings.state_dir) == Found(None, running=False, age_s=0.0)


async def test_an_agent_that_was_killed_is_not_running(
    settings: AgentSettings, start_process: StartProcess
) -> None:
    process = start_process(settings)
    found = await until(settings.state_dir, lambda found: found.running)
    assert found.status is not None
    assert found.status["pid"] == process.pid
    process.kill()
    process.wait()
    left = find(settings.state_dir)
    assert left.status is not None
    assert not left.running


MINE = {"format": FORMAT, "pid": os.getpid(), "started": start_of(os.getpid())}


def test_another_process_with_its_number_is_not_the_agent(tmp_path: Path) -> None:
    said = {**MINE, "written_s": boot_time()}
    StatusFile(tmp_path, {}).write(said)
    assert find(tmp_path).running
    StatusFile(tmp_path, {}).write({**said, "started": said["started"] - 1})  # type: ignore[operator]
    assert not find(tmp_path).running


def test_silence_is_told_by_a_clock_that_nobody_sets(tmp_path: Path) -> None:
    said = {**MINE, "written_s": 100.0}
    StatusFile(tmp_path, {}).write(said)
    assert not find(tmp_path, boot_s=lambda: 100.0 + SILENT_S).silent
    assert find(tmp_path, boot_s=lambda: 101.0 + SILENT_S).silent


def test_it_lies_in_memory_where_systemd_gives_a_folder(tmp_path: Path) -> None:
    state, memory = tmp_path / "state", tmp_path / "run"
    state.mkdir()
    memory.mkdir()
    (state / FILE).write_text("of an agent without systemd", encoding="utf-8")
    for _ in range(2):  # a restart finds its link
        file = StatusFile(state, {"RUNTIME_DIRECTORY": f"{memory}:/run/other"})
        file.write({"pid": 1, "started": 0, "written_s": 0.0})
        assert (state / FILE).readlink() == memory / FILE
        assert json.loads((state / FILE).read_text())["pid"] == 1
    file.remove()
    assert list(state.iterdir()) == list(memory.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "started": 0, "written_s": 0}', "null"]
)
def test_what_is_no_status_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    assert find(tmp_path).status is None


def test_a_disk_that_takes_nothing_is_no_concern_of_the_status(tmp_path: Path) -> None:
    StatusFile(tmp_path / "gone", {}).write({})
    StatusFile(tmp_path / "gone", {"RUNTIME_DIRECTORY": str(tmp_path / "nowhere")}).write({})


def test_a_process_that_has_ended_and_was_not_waited_for_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        while start_of(process.pid) is not None:
            time.sleep(0.01)
    finally:
        process.wait()
