"""The status file: how a running agent stands, for `fedmq agent status`, `fedmq agent doctor` and other programs.

`<state_dir>/status.json` is rewritten when something changes, and now and then when nothing does; it is never
flushed. Where systemd gives a folder in memory ($RUNTIME_DIRECTORY) it lies there, with a link in the state folder: a
memory card has better things to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedmq_edge_agent.shell.writing import replace
from fedmq_protocol.errors import StoreError

FILE: Final = "status.json"
FORMAT: Final = 1
GAP_S: Final = 10.0
"""On a disk it is written no more often."""
MEMORY_GAP_S: Final = 1.0
"""Likewise in memory."""
BEAT_S: Final = 60.0
"""Where nothing changes it is written so often, so that silence can be told from peace."""
SILENT_S: Final = 3 * BEAT_S
"""A status that is older comes from an agent that hangs, or is gone."""


class StatusFile:
    """Where the status goes.

    Args:
        state_dir: the agent's.
        environ: says by RUNTIME_DIRECTORY where it may lie in memory.
    """

    def __init__(self, state_dir: Path, environ: Mapping[str, str] | None = None) -> None:
        runtime = (os.environ if environ is None else environ).get("RUNTIME_DIRECTORY", "").split(":")[0]
        self._link = state_dir / FILE
        self._path = Path(runtime) / FILE if runtime else self._link
        self.gap_s = MEMORY_GAP_S if runtime else GAP_S
        if runtime:
            self._linked()

    def _linked(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: the file in memory is all the same
            if self._link.is_symlink() and self._link.readlink() == self._path:
                return
            self._link.unlink(missing_ok=True)
            self._link.symlink_to(self._path)

    def write(self, status: Mapping[str, Any]) -> None:
        """Replace it; a disk that does not take it has no say."""
        with contextlib.suppress(StoreError):
            replace(self._path, f"{json.dumps(status, indent=1)}\n".encode())

    def remove(self) -> None:
        """The agent ends in good order."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._link.unlink(missing_ok=True)


@dataclass(frozen=True)
class Found:
    """A status as it was found.

    Attributes:
        status: what it says; None: there is none.
        running: the process that wrote it is there.
        age_s: since it was written.
    """

    status: dict[str, Any] | None
    running: bool
    age_s: float

    @property
    def silent(self) -> bool:
        """The agent is there, and has not written for so long that it may hang."""
        return self.running and self.age_s > SILENT_S


def find(state_dir: Path, *, boot_s: Callable[[], float] | None = None) -> Found:
    """Read the status that an agent with this state folder has left; what cannot be read is none."""
    try:
        status = json.loads((state_dir / FILE).read_text(encoding="utf-8"))
        pid, started, written = int(status["pid"]), int(status["started"]), float(status["written_s"])
        known = status["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return Found(None, running=False, age_s=0.0)
    if not known:  # of another version of the agent
        return Found(None, running=False, age_s=0.0)
    now = (boot_time if boot_s is None else boot_s)()
    return Found(status, running=start_of(pid) == started, age_s=max(0.0, now - written))


def boot_time() -> float:
    """Seconds since the system started, sleep included: no clock that is set has a say in it."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def start_of(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; with its id that names it for good. None: it is not there.

    Elsewhere than on Linux it is 0 for whatever process is there.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None if Path("/proc/self").exists() or not _is_there(pid) else 0
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] == b"Z" else int(fields[19])


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def resident_bytes(pid: int | None) -> int | None:
    """What a process has resident; None: unknown, or it is gone."""
    if pid is None:
        return None
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
