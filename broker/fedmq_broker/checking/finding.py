"""What a rule finds, and what it is given to look at."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from fedmq_broker.checking.options import Version
from fedmq_broker.checking.reading import Line, Listener, Reading
from fedmq_broker.sizing import Limits

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, and how to mend it.

    Attributes:
        severity: an `error` loses messages, refuses chunks, lets strangers in or keeps Mosquitto from starting.
        rule: a short name that stays the same.
        line: None where something is missing.
    """

    severity: Severity
    rule: str
    line: Line | None
    what: str
    mend: str


@dataclass(frozen=True)
class Context:
    """All that a rule may look at.

    Attributes:
        devices: how many the broker is to serve.
        limits: what these need; `fedmq_broker.sizing.plan`.
        version: the Mosquitto that will read the file.
    """

    reading: Reading
    devices: int
    limits: Limits
    version: Version

    def outside(self) -> list[Listener]:
        """Listeners that other machines reach."""
        return [listener for listener in self.reading.listeners if reaches_out(listener)]


Rule = Callable[[Context], Iterator[Finding]]


def reaches_out(listener: Listener) -> bool:
    """Whether the listener's address is reachable from other machines."""
    if listener.port == 0:  # a socket in the file system
        return False
    host = listener.host
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
