"""Whether a federation's own Mosquitto runs on this machine, by the process id that it leaves in its folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from fedmq_broker.site import Site

_PROC: Final = Path("/proc")
"""Linux tells of processes there; elsewhere we know their numbers alone."""


def running_pid(site: Site) -> int | None:
    """The process id of a site's Mosquitto on this machine; None where it does not run, or runs in a container."""
    try:
        pid = int(site.mosquitto.pid.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if _is_mosquitto(pid, site.mosquitto.folder) else None


def pid_or_closed(site: Site) -> int | None:
    """As `running_pid`, for whoever must not take a folder that is closed for one without a broker.

    Raises:
        PermissionError: the site's folder is closed to this user, who so cannot tell.
    """
    pid = running_pid(site)
    if pid is None:
        with contextlib.suppress(FileNotFoundError):
            site.mosquitto.pid.stat()
    return pid


def has_ended(pid: int) -> bool:
    """Whether no such process runs; one that nobody has waited for counts as ended."""
    if not _PROC.is_dir():
        try:
            os.kill(pid, 0)
        except OSError as error:
            return not isinstance(error, PermissionError)
        return False
    try:
        text = _PROC.joinpath(str(pid), "stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] == "Z"


def _is_mosquitto(pid: int, folder: Path) -> bool:
    """Whether this process is a Mosquitto, and this folder's as far as the system tells."""
    if has_ended(pid):
        return False
    process = _PROC / str(pid)
    if not _PROC.is_dir():
        return True
    try:
        if not process.joinpath("comm").read_text(encoding="utf-8").startswith("mosquitto"):
            return False
    except OSError:
        return False
    try:
        return process.joinpath("cwd").resolve(strict=True).samefile(folder)
    except PermissionError:  # another user's
        return True
    except OSError:
        return False
