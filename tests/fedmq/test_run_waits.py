"""Commands that wait for a coordinator which is not there yet, or not there for a while."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedmq.commands import run as commands
from fedmq_coordinator.shell.client import NoAnswerError, NoCoordinatorError, is_starting


def test_a_coordinator_that_starts_is_told_from_one_that_runs_or_is_dead(tmp_path: Path) -> None:
    assert not is_starting(tmp_path)
    (tmp_path / "lock").write_text("")  # it ended well
    assert not is_starting(tmp_path)
    (tmp_path / "lock").write_text(f"{os.getpid()}\n")
    assert is_starting(tmp_path)
    (tmp_path / "api.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": os.getpid() + 1}))
    assert is_starting(tmp_path)  # the address is that of one that was killed
    (tmp_path / "api.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": os.getpid()}))
    assert not is_starting(tmp_path)
    (tmp_path / "api.json").unlink()
    (tmp_path / "lock").write_text(f"{2**22 + 1}\n")  # beyond the kernel's largest pid
    assert not is_starting(tmp_path)


def test_a_command_waits_for_a_coordinator_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lock").write_text(f"{os.getpid()}\n")
    (tmp_path / "api-token").write_text("token\n")

    def it_listens(_: float) -> None:
        (tmp_path / "api.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": os.getpid()}))

    monkeypatch.setattr("time.sleep", it_listens)
    with commands.client_of(None, tmp_path) as client:
        assert client.pid == os.getpid()
    assert capsys.readouterr().err == "the coordinator is starting\n"


def test_watching_outlasts_a_coordinator_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    done = SimpleNamespace(evaluations=[], version=1, waiting="", state="finished", end_reason="all rounds")
    answers: list[Any] = [NoAnswerError("gone"), NoCoordinatorError("gone"), NoCoordinatorError("gone"), done]

    class Away:
        def find_again(self) -> None: ...

        def run(self, _: str) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    commands._watch(Away(), "r")  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert captured.err == "the coordinator does not answer; waiting for it to come back\n"
    assert captured.out == "finished: all rounds\n"
