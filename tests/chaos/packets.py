"""MQTT packets cut out of a stream of bytes (MQTT 5, section 2; 3.1.1 the same), as far as a witness needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_CONNECT: Final = 1
_PUBLISH: Final = 3
_MQTT_5: Final = 5
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True)
class Publish:
    """A PUBLISH packet."""

    topic: str
    payload: bytes
    retain: bool


@dataclass
class Conversation:
    """Both directions of one TCP connection: what the client's CONNECT says holds for either."""

    version: int = 4
    connects: int = 0
    _up: bytearray = field(default_factory=bytearray)
    _down: bytearray = field(default_factory=bytearray)

    def up(self, data: bytes) -> list[Publish]:
        """What a piece from the client completes."""
        self._up += data
        return list(self._publishes(self._up))

    def down(self, data: bytes) -> list[Publish]:
        """What a piece from the broker completes."""
        self._down += data
        return list(self._publishes(self._down))

    def _publishes(self, held: bytearray) -> Iterator[Publish]:
        while (packet := _cut(held)) is not None:
            first, body = packet
            if first >> 4 == _CONNECT:
                self.connects += 1
                self.version = body[2 + int.from_bytes(body[:2], "big")]
            elif first >> 4 == _PUBLISH:
                yield self._publish(first, body)

    def _publish(self, first: int, body: bytes) -> Publish:
        at = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:at].decode()
        if first & 0b0110:  # a QoS above 0: two bytes of packet identifier
            at += 2
        if self.version == _MQTT_5:
            length, at = _varint(body, at)
            at += length
        return Publish(topic, body[at:], bool(first & 1))


def _cut(held: bytearray) -> tuple[int, bytes] | None:
    """Take a whole packet off the front: its first byte, and what comes after the length; None: it is not all there."""
    end = next((at for at in range(1, min(len(held), _LENGTH_BYTES + 1)) if held[at] < 0x80), None)
    if end is None:
        return None
    length, start = _varint(held, 1)
    if len(held) < start + length:
        return None
    packet = held[0], bytes(held[start : start + length])
    del held[: start + length]
    return packet


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """A variable byte integer, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
