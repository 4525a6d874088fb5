"""What a Mosquitto was configured to bear, as its configuration file says."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BOUNDS: Final = (
    "max_connections",
    "max_inflight_bytes",
    "max_inflight_messages",
    "max_keepalive",
    "max_packet_size",
    "max_queued_bytes",
    "max_queued_messages",
    "memory_limit",
    "sys_interval",
)
"""Options with a number; 0 or -1 mean that there is no bound, and are left out."""


def read_limits(path: Path) -> dict[str, float]:
    """The bounds in a `mosquitto.conf`; of several listeners the largest. Empty: it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for line in lines:
        name, _, value = line.strip().partition(" ")
        if name in BOUNDS and value.strip().isdecimal() and int(value) > 0:
            found[name] = max(found.get(name, 0.0), float(value))
    return found
