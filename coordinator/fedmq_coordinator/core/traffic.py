"""Bytes that devices moved, out of what their agents counted on their sockets.

An agent's counters only grow while it runs, and begin at zero when it starts. They come with its updates and its
presence, some of them more than once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_MOST: Final = 2**63 - 1
"""More than anything moves, and as much as is written down: counters that lie must not grow without end."""


@dataclass
class Meter:
    """Turns the counters of several agents into what they grew by."""

    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Device -> its counters when it last told."""

    def grown(self, device: str, sent: int, received: int) -> tuple[int, int]:
        """What was sent and received since this device last told; smaller counters are a restarted agent's."""
        before = self.seen.get(device, (0, 0))
        self.seen[device] = sent, received
        if sent < before[0] or received < before[1]:
            before = 0, 0
        return sent - before[0], received - before[1]

    def restarted(self, device: str, sent: int, received: int) -> bool:
        """Whether these counters are of another start of the agent than the last ones."""
        before = self.seen.get(device, (0, 0))
        return sent < before[0] or received < before[1]


@dataclass
class Moved:
    """Bytes sent and received, by device."""

    by_device: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, device: str, sent: int, received: int) -> None:
        """Count what a device moved; nothing is no entry."""
        if sent or received:
            before = self.by_device.get(device, (0, 0))
            self.by_device[device] = min(_MOST, before[0] + sent), min(_MOST, before[1] + received)

    def take(self, other: Moved) -> None:
        """Add another account to this one."""
        for device, (sent, received) in other.by_device.items():
            self.add(device, sent, received)

    @property
    def sent(self) -> int:
        """By all devices."""
        return sum(sent for sent, _ in self.by_device.values())

    @property
    def received(self) -> int:
        """By all devices."""
        return sum(received for _, received in self.by_device.values())
