"""`fedmq agent status`: what it prints of a status, and what a script is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedmq.cli import run
from fedmq.commands.status import CANNOT, NOT_THERE, TAKES_PART
from fedmq_edge_agent.shell.status import SILENT_S, StatusFile, start_of

NOW_S = 5_000.0
SAID: dict[str, Any] = {
    "format": 1,
    "device": "dev-1",
    "federation": "home",
    "agent_version": "0.1.0",
    "broker": "broker.home:8883",
    "state": "waiting",
    "state_s": 30.0,
    "problem": "",
    "waiting": "holds version 3 of r1; waiting for a lease",
    "run": "r1",
    "round": 4,
    "version": 3,
    "connected": True,
    "trainer": "idle",
    "failures": 0,
    "last_failure": "",
    "updates_waiting": 1,
    "updates_done": 12,
    "sent_bytes": 1_200_000,
    "received_bytes": 900,
    "agent_resident_bytes": 45_000_000,
    "trainer_resident_bytes": 210_000_000,
    "board": None,
}


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second passes between a status and the look at it, however slow the machine is."""
    monkeypatch.setattr("fedmq_edge_agent.shell.status.boot_time", lambda: NOW_S)


def leave(folder: Path, **changes: Any) -> None:
    """A status as an agent of this process would leave it."""
    mine = {"pid": os.getpid(), "started": start_of(os.getpid()), "written_s": NOW_S}
    StatusFile(folder, {}).write({**SAID, **mine, **changes})


def test_a_device_that_waits_its_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, written_s=NOW_S - 9)
    assert run(["agent", "status", "--state-dir", str(tmp_path)]) == TAKES_PART
    said = capsys.readouterr().out
    for words in (
        "dev-1 of home",
        "waiting for 39 s",
        "waiting for a lease; as of 9 s ago",
        "r1, round 4, version 3",
        "1.2 MB sent",
    ):
        assert words in said


def test_what_others_say_does_not_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure's words are a task's own, and why a device is hindered may be a broker's."""
    hostile = "nothing\x1b[2J\rstate        training\nstate        training"
    leave(tmp_path, state="hindered", problem=hostile, failures=1, last_failure=hostile, waiting=hostile)
    assert run(["agent", "status", "--state-dir", str(tmp_path)]) == CANNOT
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\r" not in said
    assert [line for line in said.splitlines() if line.startswith("state")] == [
        "state        hindered for 30 s"
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state": "training"}, TAKES_PART),
        ({"state": "resting", "problem": "its link is metered"}, TAKES_PART),
        ({"state": "hindered", "problem": "the disk is full"}, CANNOT),
        ({"state": "offline", "connected": False}, CANNOT),
        ({"pid": 2**22 - 1}, NOT_THERE),
        ({"format": 2}, NOT_THERE),
        ({"written_s": NOW_S - SILENT_S - 1}, NOT_THERE),
    ],
)
def test_what_a_script_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: int
) -> None:
    leave(tmp_path, **changes)
    assert run(["agent", "status", "--state-dir", str(tmp_path), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code
    assert run(["agent", "status", "--state-dir", str(tmp_path)]) == code
    assert str(changes.get("problem", "")) in capsys.readouterr().out


def test_why_it_does_not_train_is_there_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = {
        "power": False,
        "battery": 31.0,
        "temperature": ["cpu-thermal", 71.5],
        "minute": 605,
        "synchronised": False,
        "metered": True,
    }
    why = "trainer killed during train: took 812 MB, 600 MB are allowed (memory_limit)"
    leave(tmp_path, state="hindered", problem="x", failures=3, last_failure=why, board=board)
    assert run(["agent", "status", "--state-dir", str(tmp_path)]) == CANNOT
    said = capsys.readouterr().out
    assert f"failed 3 times in a row, last: {why}" in said
    assert "on battery, battery 31 %, cpu-thermal 72 °C, its clock shows 10:05" in said


def test_where_no_agent_ever_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "device.toml"
    settings.write_text(f'[device]\nid = "dev-1"\nstate_dir = "{tmp_path / "state"}"\n', encoding="utf-8")
    assert run(["agent", "status", "--config", str(settings)]) == NOT_THERE
    assert "not running" in capsys.readouterr().out


def test_which_agent_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["agent", "status"]) == 1
    assert "--state-dir" in capsys.readouterr().err
