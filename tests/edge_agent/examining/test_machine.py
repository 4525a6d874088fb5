"""Disks that are full or read-only, folders of somebody else, and memory that does not do."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.machine import look_at_disk, look_at_memory, memory_left
from tests.edge_agent.examining.clinic import be_known, findings_of

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Small file systems of the test's own, for root."""
    mounted: list[Path] = []

    def one(options: str, *, name: str = "disk") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("mounting a tmpfs takes root")
        mounted.append(folder)
        return folder

    yield one
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def settings(state_dir: Path) -> AgentSettings:
    return AgentSettings(id="dev-1", task="fedmq.tasks.iris", state_dir=state_dir)


async def test_a_folder_that_does(tmp_path: Path) -> None:
    one = settings(tmp_path / "state")
    be_known(one)
    found = await findings_of(one, "state", "disk")
    assert found["state"].level == found["disk"].level == "ok"
    assert sorted(path.name for path in one.state_dir.iterdir()) == ["key", "state"]


async def test_a_full_disk(mount: Mount) -> None:
    disk = mount("size=64k")
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    found = await findings_of(settings(disk / "state"), "state", "disk")
    assert found["state"].level == "failed"
    assert "the disk is full" in found["state"].found
    assert "free some space" in found["state"].mend
    assert found["disk"].level == "skipped"


async def test_a_disk_too_small_for_the_model(mount: Mount) -> None:
    one = Device(settings(mount("size=10m") / "state"))
    one.probe["task"] = {"elements": 5_000_000, "parameters": 5_000_000}
    found = await findings_of(one, "state", "disk")
    assert found["state"].level == "ok"
    assert found["disk"].level == "failed"
    # Two residuals of 20 MB, the model at a byte each, and 4 MB of room.
    assert "with 5,000,000 parameters wants 49 MB more, and 10.5 MB are free" in found["disk"].found
    assert "state_dir" in found["disk"].mend


async def test_a_read_only_disk(mount: Mount) -> None:
    found = await findings_of(settings(mount("size=1m,ro")), "state")
    assert found["state"].level == "failed"
    assert "read-only" in found["state"].found


async def test_no_inodes_left(mount: Mount) -> None:
    found = await findings_of(settings(mount("size=1m,nr_inodes=50")), "state")
    assert found["state"].level == "failed"
    assert "inodes" in found["state"].found


async def test_a_folder_of_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files away takes root")
    one = settings(tmp_path / "state")
    be_known(one)
    os.chown(one.state_dir / "key", 65_534, -1)
    found = await findings_of(one, "state")
    assert found["state"].level == "failed"
    assert "belongs to the user nobody" in found["state"].found


async def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    one = settings(tmp_path / "state")
    be_known(one)
    (one.state_dir / "key").chmod(0o640)
    found = await findings_of(one, "state")
    assert found["state"].level == "warning"
    assert f"chmod 600 {one.state_dir}/key" in found["state"].mend


@pytest.mark.parametrize("file", ["state", "key", "coordinator.pub"])
async def test_damaged_books(tmp_path: Path, file: str) -> None:
    one = settings(tmp_path / "state")
    be_known(one)
    (one.state_dir / file).write_text("nonsense")
    found = await findings_of(one, "state")
    assert found["state"].level == "failed"
    assert str(one.state_dir / file) in found["state"].found


async def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    found = await findings_of(settings(tmp_path / "state"), "state")
    assert found["state"].level == "failed"


def test_memory_is_the_least_of_what_is_allowed(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 900000 kB\nMemAvailable:  300000 kB\nSwapFree: 100000 kB\n")
    assert memory_left(meminfo, tmp_path) == (400_000 * 1024, "on this machine")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_left(meminfo, tmp_path) == (400_000 * 1024, "on this machine")
    (tmp_path / "memory.max").write_text("200000000\n")
    (tmp_path / "memory.current").write_text("150000000\n")
    assert memory_left(meminfo, tmp_path) == (50_000_000, "within this container's limit")
    assert memory_left(tmp_path / "nothing", tmp_path / "nothing") is None


async def test_a_board_without_memory_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Device(settings(tmp_path / "state"))
    one.probe = {
        "task": {"elements": 10_000_000, "parameters": 10_000_000},
        "end": {"peak_bytes": 200_000_000, "own_bytes": 90_000_000},
    }
    wants = 200_000_000 + 2 * 40_000_000 + 50_000_000
    for left, level in ((wants - 1, "failed"), (wants + 1, "warning"), (2 * wants, "ok")):
        monkeypatch.setattr(
            "fedmq_edge_agent.examining.machine.memory_left", lambda left=left: (left, "here")
        )
        finding = await look_at_memory(one)
        assert finding.level == level
        assert "wants 330 MB" in finding.found


@pytest.mark.parametrize(
    ("folder", "level", "words"),
    [
        ("state", "warning", "activating (auto-restart), its last end: exit-code, restarted 7 times"),
        ("elsewhere", "ok", "does not run now"),
    ],
)
async def test_a_service_that_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, level: str, words: str
) -> None:
    """As `systemctl show` tells of it, for the agent of this state folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(
        "#!/bin/sh\necho LoadState=loaded; echo ActiveState=activating; echo SubState=auto-restart\n"
        f"echo Result=exit-code; echo NRestarts=7; echo WorkingDirectory={tmp_path / folder}\n"
    )
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    found = await findings_of(settings(tmp_path / "state"), "agent")
    assert found["agent"].level == level
    assert words in found["agent"].found


async def test_a_file_that_goes_while_it_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent that runs replaces its files whenever it likes."""
    one = Device(settings(tmp_path / "state"))
    (one.state_dir / "runs" / "r1").mkdir(parents=True)
    going = one.state_dir / "runs" / "r1" / "residual.tmp"
    going.write_bytes(bytes(1_000))
    looks = Path.stat

    def look_once(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        there = looks(path, follow_symlinks=follow_symlinks)
        if path == going:
            going.unlink()
        return there

    monkeypatch.setattr(Path, "stat", look_once)
    assert (await look_at_disk(one)).level in {"ok", "warning", "failed"}
    assert (await look_at_disk(one)).level in {"ok", "warning", "failed"}
