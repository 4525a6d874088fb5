"""What the operating system must allow for a fleet, and what this one does.

Mosquitto listens with a backlog of 100, whatever the kernel would allow, and raises no limit by itself.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmq_broker.checking.finding import Finding
from fedmq_broker.sizing import Limits

_BACKLOG: Final = 100
_PROC: Final = Path("/proc/sys")


@dataclass(frozen=True)
class Machine:
    """Limits of the operating system; None where it has no such limit, or does not tell.

    Attributes:
        open_files: that a process may have open at most.
        somaxconn: the kernel's bound on a listener's backlog.
        conntrack: connections that the firewall can follow.
        memory_bytes: of the whole machine.
        file_max: files open in the whole system.
    """

    open_files: int | None = None
    somaxconn: int | None = None
    conntrack: int | None = None
    memory_bytes: int | None = None
    file_max: int | None = None


def this_machine() -> Machine:
    """The limits here, of a process that we would start."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Machine(
        open_files=None if hard == resource.RLIM_INFINITY else hard,
        somaxconn=_number(_PROC / "net/core/somaxconn"),
        conntrack=_number(_PROC / "net/netfilter/nf_conntrack_max"),
        memory_bytes=_memory(),
        file_max=_number(_PROC / "fs/file-max"),
    )


def check_machine(machine: Machine, limits: Limits) -> Iterator[Finding]:
    """What of a machine is too little for a fleet."""
    if machine.open_files is not None and machine.open_files < limits.open_files:
        yield Finding(
            "error",
            "open-files",
            None,
            f"a process may open {machine.open_files:,} files here; {limits.open_files:,} are needed:"
            f" {limits.why['open_files']}",
            f"LimitNOFILE={limits.open_files} in its systemd unit, or ulimit -n {limits.open_files}",
        )
    if machine.file_max is not None and machine.file_max < 2 * limits.open_files:
        yield Finding(
            "error",
            "file-max",
            None,
            f"all processes together may open {machine.file_max:,} files; the broker alone needs {limits.open_files:,}",
            f"sysctl -w fs.file-max={4 * limits.open_files}",
        )
    if machine.somaxconn is not None and machine.somaxconn < _BACKLOG:
        yield Finding(
            "warning",
            "somaxconn",
            None,
            f"{machine.somaxconn} connections may wait to be taken, where Mosquitto asks for {_BACKLOG}: when a fleet"
            " comes back at once, more of it has to try again",
            f"sysctl -w net.core.somaxconn={_BACKLOG}",
        )
    if machine.conntrack is not None and machine.conntrack < 2 * limits.max_connections:
        yield Finding(
            "warning",
            "nf-conntrack",
            None,
            f"the firewall follows {machine.conntrack:,} connections; two for each of {limits.max_connections:,} are"
            " wanted, since old ones linger",
            f"sysctl -w net.netfilter.nf_conntrack_max={4 * limits.max_connections}",
        )
    if machine.memory_bytes is not None and machine.memory_bytes < limits.resident_bytes:
        yield Finding(
            "warning",
            "memory",
            None,
            f"this machine has {machine.memory_bytes / 2**20:,.0f} MB; at worst the broker takes"
            f" {limits.resident_bytes / 2**20:,.0f}",
            "fewer devices a broker, a smaller model, or more memory",
        )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _memory() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(text.partition("MemTotal:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None
