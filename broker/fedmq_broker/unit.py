"""The systemd unit of a federation's own Mosquitto: one folder to write in, and little else of the machine."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmq_broker.sizing import Limits

_PRIVILEGED_BELOW: Final = 1_024
_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))


@dataclass(frozen=True)
class Unit:
    """What a unit is rendered from.

    Attributes:
        federation: its name.
        folder: where Mosquitto runs, absolute.
        configuration: the configuration's name in it.
        program: the absolute path of `mosquitto`.
        user: who runs it.
        notifies: whether the program tells systemd when it is ready.
        limits: for files and memory.
        ports: that it listens on.
    """

    federation: str
    folder: Path
    configuration: str
    program: Path
    user: str
    notifies: bool
    limits: Limits
    ports: tuple[int, ...]


def tells_systemd(program: Path) -> bool:
    """Whether this Mosquitto was built to tell systemd when it is ready; if not, systemd must not wait for it."""
    try:
        return b"libsystemd.so" in program.read_bytes()
    except OSError:
        return False


def render_unit(unit: Unit) -> str:
    """The text of the unit."""
    low = any(port < _PRIVILEGED_BELOW for port in unit.ports)
    capability = "CAP_NET_BIND_SERVICE" if low else ""
    at_home = any(unit.folder.is_relative_to(home) for home in _HOMES)
    home = (
        f"ProtectHome=tmpfs\nBindPaths={_path(unit.folder)}"  # of all homes it sees this one folder
        if at_home
        else "ProtectHome=yes"
    )
    memory = unit.limits.resident_bytes * 5 // 4 // 2**20
    return textwrap.dedent(
        f"""\
        # Written by `fedmq broker init`: changes here are lost. Install it, and start it now and at each boot, with
        #   systemctl enable --now {unit.folder}/fedmq-broker.service

        [Unit]
        Description=Mosquitto of the federation {unit.federation}
        Documentation=man:mosquitto(8) man:mosquitto.conf(5)
        After=network-online.target
        Wants=network-online.target

        [Service]
        Type={"notify" if unit.notifies else "exec"}
        User={unit.user}
        WorkingDirectory={_path(unit.folder)}
        ExecStart={_path(unit.program)} -c {unit.configuration}
        ExecReload=/bin/kill -HUP $MAINPID
        Restart=on-failure
        RestartSec=2

        # {unit.limits.why["open_files"]}
        LimitNOFILE={unit.limits.open_files}
        # Its own memory_limit holds first; this is for what OpenSSL takes beside it, and a quarter more.
        MemoryMax={memory}M

        # It reads and writes in its folder, listens, and needs nothing else of this machine.
        UMask=0077
        NoNewPrivileges=yes
        CapabilityBoundingSet={capability}
        AmbientCapabilities={capability}
        ProtectSystem=strict
        ReadWritePaths={_path(unit.folder)}
        {{home}}
        PrivateTmp=yes
        PrivateDevices=yes
        ProtectClock=yes
        ProtectControlGroups=yes
        ProtectHostname=yes
        ProtectKernelLogs=yes
        ProtectKernelModules=yes
        ProtectKernelTunables=yes
        ProtectProc=invisible
        ProcSubset=pid
        RemoveIPC=yes
        RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
        RestrictNamespaces=yes
        RestrictRealtime=yes
        RestrictSUIDSGID=yes
        LockPersonality=yes
        MemoryDenyWriteExecute=yes
        SystemCallArchitectures=native
        SystemCallFilter=@system-service
        SystemCallFilter=~@privileged @resources

        [Install]
        WantedBy=multi-user.target
        """
    ).replace("{home}", home)


def _path(path: Path) -> str:
    """A path as a unit takes it: `%` begins a specifier, and blanks end a word."""
    text = str(path).replace("\\", "\\\\").replace("%", "%%")
    return text.replace(" ", "\\x20")
