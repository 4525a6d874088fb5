"""What lies between clients and the broker: a `Network` says of every packet what becomes of it."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Way = Literal["up", "down"]
"""Of a packet: from a client to the broker, or the other way."""

Loss = Literal["", "packet", "ack", "routing"]
"""What is lost: nothing; the packet; its acknowledgement alone; or, behind an acknowledgement, the message."""


class Fate(NamedTuple):
    """What becomes of one packet.

    Attributes:
        delay_s: until it arrives.
        loss: see `Loss`. On the way down there is no acknowledgement to tell of, and any loss is the packet's.
        copies: how often it arrives.
        overtakes: it keeps no place behind those sent before it, and those sent later none behind it.
        cuts: with its arrival, or in place of that, the connection ends.
    """

    delay_s: float = 0.01
    loss: Loss = ""
    copies: int = 1
    overtakes: bool = False
    cuts: bool = False


class WillFate(NamedTuple):
    """When the last will of a connection that has ended is published.

    Attributes:
        delay_s: after the end; it takes a broker one and a half keep-alives to notice.
        outlives: a new connection of the same client does not hurry it, so that it comes after the new birth.
    """

    delay_s: float
    outlives: bool = False


class Network(Protocol):
    """What decides on packets and on last wills."""

    def fate(self, client_id: str, way: Way, topic: str, payload: bytes) -> Fate:
        """What becomes of a PUBLISH that `client_id` sends (up) or is sent (down)."""
        ...

    def latency_s(self, client_id: str) -> float:
        """How long a small packet takes: PUBACK, SUBSCRIBE and its acknowledgement, the end of a connection."""
        ...

    def will(self, client_id: str) -> WillFate | None:
        """What becomes of its last will; None: it is never published."""
        ...


class Calm:
    """A network that loses nothing.

    Args:
        delay_s: how long any packet takes.
        will: what becomes of last wills.
    """

    def __init__(self, delay_s: float = 0.01, will: WillFate | None = WillFate(15.0)) -> None:  # noqa: B008 - a tuple
        self._delay_s, self._fate, self._will = delay_s, Fate(delay_s), will

    def fate(self, client_id: str, way: Way, topic: str, payload: bytes) -> Fate:  # noqa: ARG002 - all alike
        return self._fate

    def latency_s(self, client_id: str) -> float:  # noqa: ARG002 - likewise
        return self._delay_s

    def will(self, client_id: str) -> WillFate | None:  # noqa: ARG002 - likewise
        return self._will
