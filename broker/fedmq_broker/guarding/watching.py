"""Who floods the broker itself, whatever becomes of what they say: pure, told of log lines and counters.

The coordinator tells who floods it. What never reaches it (topics that are denied, subscriptions, connections that push
each other out) shows in two places: Mosquitto's log names the member of each connection, and the kernel counts the
bytes that each connection brings. A member has an allowance of bytes (a token bucket) and of connections.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fedmq_broker.guarding.sockets import Peer, plain
from fedmq_protocol.access import ROLES

_CONNECTED: Final = re.compile(r"New client connected from (.+):(\d+) as .* \(.*u'([^']*)'\)\.?$")
_MINUTE_S: Final = 60.0
_DENSE_BYTES: Final = 4
_SUBSCRIPTIONS: Final = 1_000
_BASE_BYTES_PER_S: Final = 2**19
_BASE_BYTES: Final = 4 * 2**20
_AT_ONCE: Final = 4
_EVERY_S: Final = 10.0


@dataclass(frozen=True)
class Allowance:
    """What a member may do at the broker.

    Attributes:
        payload_bytes: that it may bring at once, TLS included.
        bytes_per_s: in the long run.
        connections: in a minute. An agent waits longer after each attempt that came to nothing.
        subscriptions: of all members together, for each that is connected. An agent has three, and four for chunks.
    """

    payload_bytes: int
    bytes_per_s: float
    connections: int = 60
    subscriptions: int = 64


def allowance(parameters: int) -> Allowance:
    """What a device needs at the most: four updates of all parameters as they are, and one more every ten seconds.

    Args:
        parameters: of the largest model.
    """
    dense = _DENSE_BYTES * parameters
    return Allowance(_BASE_BYTES + _AT_ONCE * dense, _BASE_BYTES_PER_S + dense / _EVERY_S)


@dataclass
class _Member:
    tokens: float
    at: float
    connections: deque[float] = field(default_factory=deque)
    lately: int = 0
    """Bytes since there were last as many subscriptions as there may be."""


class Watch:
    """What members did of late.

    Args:
        allowance: the same for each; the roles have none.
    """

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self._members: dict[str, _Member] = {}
        self._owners: dict[Peer, str] = {}
        self._counted: dict[Peer, int] = {}
        self._standing = 0
        self._suspect: tuple[str, int] | None = None
        self._cleared: set[str] = set()

    def logged(self, line: str, *, now: float) -> tuple[str, str] | None:
        """Take a line of Mosquitto's log.

        Returns:
            Who floods with connections, and in which words; None if nobody does.
        """
        found = _CONNECTED.search(line)
        if found is None or found[3] in ROLES or not found[3]:
            return None
        peer, name = (plain(found[1]), int(found[2])), found[3]
        self._owners[peer] = name
        self._counted.pop(peer, None)
        times = self._member(name, now).connections
        times.append(now)
        while times[0] <= now - _MINUTE_S:
            times.popleft()
        if len(times) <= self.allowance.connections:
            return None
        text = f"{len(times)} connections in {max(now - times[0], 0.1):.1f} s, the last from {peer[0]}"
        times.clear()
        return name, text

    def counted(self, received: Mapping[Peer, int], *, now: float) -> list[tuple[str, str]]:
        """Take what the kernel has counted on each connection that stands.

        Returns:
            Who floods with bytes, and in which words.
        """
        found = []
        brought: dict[str, int] = {}
        self._standing = len(received)
        for peer, count in received.items():
            name = self._owners.get(peer)
            if name is not None:
                brought[name] = brought.get(name, 0) + count - self._counted.get(peer, 0)
                self._counted[peer] = count
        for peer in self._counted.keys() - received.keys():
            del self._counted[peer]
            self._owners.pop(peer, None)
        for name, count in brought.items():
            member = self._member(name, now)
            limits = self.allowance
            filled = member.tokens + (now - member.at) * limits.bytes_per_s
            member.tokens = min(filled, limits.payload_bytes) - count
            member.at = now
            member.lately += count
            if member.tokens < 0:
                over = limits.payload_bytes - member.tokens
                found.append(
                    (name, f"{over / 1e6:,.0f} MB beyond {limits.bytes_per_s / 1e6:.1f} MB a second")
                )
                member.tokens = float(limits.payload_bytes)
        return found

    def subscribed(self, count: int) -> tuple[str | None, str | None, str]:
        """Take the number of all subscriptions, which names nobody.

        Where they are far too many, the member that brought most bytes of late is suspected, and to be cut off; nobody
        where no bytes are counted. If most of them are gone the next time, they were its; else it is acquitted, and the
        next one is suspected.

        Returns:
            Who is suspected, who is acquitted, and why the former is suspected.
        """
        # Whoever connected before us stands in no line that we heard, and the kernel counts it all the same.
        members = max(self._standing, len(set(self._owners.values())))
        usual = _SUBSCRIPTIONS + self.allowance.subscriptions * members
        suspect, self._suspect = self._suspect, None
        acquitted = None
        if suspect is not None and count > (usual + suspect[1]) / 2:
            acquitted = suspect[0]
            self._cleared.add(acquitted)
        if count <= usual or (suspect is not None and acquitted is None):
            self._cleared.clear()
            for member in self._members.values():
                member.lately = 0
            return None, acquitted, ""
        others = {
            name: one.lately
            for name, one in self._members.items()
            if one.lately and name not in self._cleared
        }
        worst = max(others, key=others.__getitem__, default=None)
        if worst is not None:
            self._suspect = worst, count
        return worst, acquitted, f"{count:,} subscriptions, and it said most while they grew"

    def _member(self, name: str, now: float) -> _Member:
        if name not in self._members:
            self._members[name] = _Member(float(self.allowance.payload_bytes), now)
        return self._members[name]
