"""A child process that ends with us, its last words, and the signals by which people end us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from fedmq_broker import guard
from fedmq_broker.errors import BrokerStartError

_LOG_LINES = 8


class Child:
    """A process, and the thread that started it and lives as long: Linux ties the death signal to that thread.

    Args:
        command: what to run.
        log: takes what it writes.
        folder: where it runs; ours, if None.
    """

    def __init__(self, command: list[str], log: IO[bytes], *, folder: Path | None = None) -> None:
        self.ended = threading.Event()
        self.exit_code: int | None = None
        self._command = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command]
        self._log = log
        self._folder = folder
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        threading.Thread(target=self._run, name="fedmq-broker", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise BrokerStartError(f"{command[0]} cannot be run: {self._error}")

    def _run(self) -> None:
        try:
            self._process = subprocess.Popen(  # noqa: S603  # the command is ours
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C in the terminal is for us, and we stop the child in order
            )
        except OSError as error:
            self._error = error
            self._started.set()
            return
        self._started.set()
        self.exit_code = self._process.wait()
        self.ended.set()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self, grace_s: float) -> None:
        for ask in (signal.SIGTERM, signal.SIGKILL):
            if self.ended.is_set():
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, ask)
            self.ended.wait(grace_s)


def tail(path: Path) -> str:
    """The last lines of a log, for a complaint."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(lines[-_LOG_LINES:]) or "(it wrote nothing)"


@contextlib.contextmanager
def signals_set(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set the event instead of raising, where we may say so: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
