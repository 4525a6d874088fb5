"""The command as its users run it: in a process of its own, whose descendants are all known."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

_MARK = "FEDMQ_TEST_MARK"
_PATIENCE_S = 60.0


class CommandLine:
    """Runs `fedmq …` with a mark in the environment, which every process that it starts inherits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self._mark = uuid.uuid4().hex
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDMQ_")}
        self.environment = {**kept, _MARK: self._mark, "TMPDIR": str(self.temporary), "COLUMNS": "120"}

    def run(
        self, *arguments: str, timeout_s: float = 250.0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            [sys.executable, "-m", "fedmq", *arguments],
            env={**self.environment, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start, with pipes; unbuffered, in a session of its own, as from a terminal."""
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "fedmq", *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def alive(self) -> list[psutil.Process]:
        """Every process that descends from a command of this test."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def all_gone(self) -> bool:
        """Whether nothing is left, or is about to: the kernel takes a moment to carry out a kill."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            if not self.alive():
                return True
            time.sleep(0.05)
        return False


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The complaint of a command that failed: one line on stderr, nothing of a traceback, nothing on stdout."""
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fedmq: ")
    return lines[0].removeprefix("fedmq: ")
