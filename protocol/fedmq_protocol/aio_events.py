"""What a connection tells its owner, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from fedmq_protocol.errors import ConnectionFailedError

ProtocolVersion: TypeAlias = Literal[4, 5]
"""The protocol level in a CONNECT packet: 4 is MQTT 3.1.1, 5 is MQTT 5."""

MQTT_3_1_1: Final = 4
MQTT_5: Final = 5


@dataclass(frozen=True, slots=True)
class Message:
    """A message that arrived.

    Attributes:
        retained: the broker had stored it; it was not published just now.
        duplicate: the broker sent it before. Its absence proves nothing.
    """

    topic: str
    payload: bytes
    retained: bool = False
    qos: int = 0
    duplicate: bool = False
    _acknowledge: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def ack(self) -> None:
        """Tell the broker that it is dealt with. Asking for the next event does so too; twice does no harm."""
        if self._acknowledge is not None:
            self._acknowledge()


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker let us in, and has granted what was subscribed before.

    Attributes:
        session_present: the broker kept a session; never so with clean sessions unless the broker errs.
        protocol: 5, or 4 for MQTT 3.1.1.
        max_packet_bytes: the largest packet that the broker takes, where it says (MQTT 5 only).
        refused: topic filters of earlier subscriptions that the broker refuses this time.
    """

    session_present: bool
    protocol: ProtocolVersion
    max_packet_bytes: int | None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection was lost, or could not be made. The same failure in a row is told once.

    Attributes:
        reason: one line for people; it names the fix where there is one.
        permanent: trying again will not help until someone mends something, such as a wrong password.
        retry_in_s: until the next attempt.
    """

    reason: str
    permanent: bool = False
    retry_in_s: float = 0.0


Event: TypeAlias = Message | Connected | Disconnected


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes for us, at QoS 1, when we vanish without a word."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes on the TCP connections to the broker since the start: every MQTT packet, and TLS and WebSocket framing."""

    bytes_sent: int
    bytes_received: int


class RefusedError(ConnectionFailedError):
    """The broker refuses us, or something that we asked for, and will again until someone mends it."""
