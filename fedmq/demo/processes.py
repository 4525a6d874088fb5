"""The processes of a demo: started one by one, watched, and ended in order on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from fedmq.config import variable_key
from fedmq_protocol.errors import FedmqError

END_WITHIN_S: Final = 2.5
"""How long a process may take to end by itself before it is killed. Nothing that it keeps is of use later."""
_LOOK_S: Final = 0.02
_TAIL_BYTES: Final = 4096
_VOICE: Final = "fedmq: "


class ProcessEndedError(FedmqError):
    """A process that the demo stands on has ended by itself."""


@dataclass
class Child:
    """One process and the file that takes what it says."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def last_words(self) -> str:
        """The last that it said of its own accord, or else its last line."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            lines = []
        said = [line for line in lines if line.startswith(_VOICE)] or lines
        return said[-1].removeprefix(_VOICE).strip() if said else "it said nothing"


@dataclass
class Processes:
    """Starts children and ends them; used from one thread."""

    folder: Path
    _children: list[Child] = field(default_factory=list)

    def start(self, name: str, command: list[str], *, pipes: bool = False) -> Child:
        """Start a command, with stderr (and stdout, without pipes) in a log of its own.

        Each child leads a session of its own: Ctrl-C in the terminal reaches the demo alone, which then ends them.
        """
        log = self.folder / f"{name}.log"
        # Settings are the demo's own, whatever the terminal has exported; what is temporary goes with the folder.
        environment = {key: value for key, value in os.environ.items() if variable_key(key) is None}
        environment["TMPDIR"] = str(self.folder)
        with log.open("ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                command,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else file,
                stderr=file,
                env=environment,
                start_new_session=True,
                close_fds=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Look whether all are alive.

        Raises:
            ProcessEndedError: one is not; with the last that it said.
        """
        for child in self._children:
            if _is_over(child):
                raise ProcessEndedError(f"the {child.name} has ended: {child.last_words()}")

    async def end(self, *children: Child) -> None:
        """Ask `children` to end, all at once, wait, and kill those that do not, with all that they have started."""
        for child in children:
            _signal(child, signal.SIGTERM)
        until = time.monotonic() + END_WITHIN_S
        while time.monotonic() < until and not all(_is_over(child) for child in children):  # noqa: ASYNC110 - the system has no event for it
            await asyncio.sleep(_LOOK_S)
        for child in children:
            _signal_session(child, signal.SIGKILL)
            child.process.wait()
            for pipe in (child.process.stdin, child.process.stdout):
                _close(pipe)
            self._children.remove(child)

    async def end_all(self) -> None:
        """End what is left."""
        await self.end(*self._children)


def _is_over(child: Child) -> bool:
    """Whether it has ended. It stays a zombie, so that nobody else can get its process id, until it is waited for."""
    if child.process.returncode is not None:
        return True
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal(child: Child, number: signal.Signals) -> None:
    if not _is_over(child):
        os.kill(child.pid, number)


def _signal_session(child: Child, number: signal.Signals) -> None:
    """Reach the child and what it has left in its process group."""
    if child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()
