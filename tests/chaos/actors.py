"""Processes on the stage: started, killed, stopped in their tracks and let go on, and looked after."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

State: TypeAlias = Literal["down", "up", "paused"]

_TAIL_BYTES: Final = 2_000
_PAGE_KB: Final = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass
class Actor:
    """One process, again and again.

    Attributes:
        log: takes what it says, over all its lives.
        starts: when its lives began, in seconds of the monotonic clock.
        kills: how often it was killed.
        ends: how it ended by itself: exit code and last words, where nobody had asked for it.
    """

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str]
    folder: Path
    starts: list[float] = field(default_factory=list)
    kills: int = 0
    pauses: int = 0
    ends: list[tuple[int, str]] = field(default_factory=list)
    log_from: int = 0
    """Where the present life's words begin in the log."""
    resident: list[tuple[float, int]] = field(default_factory=list)
    """Seconds of its life, and KB of memory that it then had."""
    _process: subprocess.Popen[bytes] | None = None
    _paused: bool = False

    def start(self) -> None:
        """Begin a life."""
        assert self._process is None
        self.log_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self._paused = False
        self.starts.append(time.monotonic())

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def state(self) -> State:
        """How it is; an end of its own is noted."""
        if self._process is None:
            return "down"
        code = self._process.poll()
        if code is not None:
            self.ends.append((code, self.last_words()))
            self._process = None
            return "down"
        return "paused" if self._paused else "up"

    def kill(self) -> None:
        """SIGKILL, as a power cut would; paused or not."""
        if self.state == "down":
            return
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        self.kills += 1

    def pause(self) -> None:
        """SIGSTOP."""
        if self.state == "up":
            os.kill(self.pid, signal.SIGSTOP)
            self._paused = True
            self.pauses += 1

    def go_on(self) -> None:
        """SIGCONT."""
        if self.state == "paused":
            os.kill(self.pid, signal.SIGCONT)
            self._paused = False

    def end(self, *, within_s: float = 60.0) -> int | None:
        """Ask it to end by itself; its exit code, or None if it had to be killed, or was down."""
        if self.state == "down":
            return None
        self.go_on()
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = None
        self._process = None
        return code

    def words(self) -> str:
        """What it has said in its present life."""
        with self.log.open("rb") as log:
            log.seek(self.log_from)
            return log.read().decode("utf-8", "replace")

    def last_words(self) -> str:
        """The end of its log."""
        with self.log.open("rb") as log:
            log.seek(max(self.log_from, self.log.stat().st_size - _TAIL_BYTES))
            return log.read().decode("utf-8", "replace").strip()

    def weigh(self) -> None:
        """Note its memory now."""
        if self.state != "down":
            with contextlib.suppress(OSError, ValueError, IndexError):
                pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
                self.resident.append((time.monotonic() - self.starts[-1], pages * _PAGE_KB))


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(each) for each in (task / "children").read_text().split()]
    return found
