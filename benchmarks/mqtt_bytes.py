"""What devices' bytes are spent on: packets of MQTT told apart by their kind, out of a proxy's stream.

A message of the protocol counts in two lines, what it carries of a model and the rest: topic, envelope, signature,
header. And it is noted how many bytes each device had moved when it had a model version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.proxy import Connection, Way
from fedmq_broker.embedded.packets import Framer
from fedmq_protocol.envelope import open_envelope
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import Announcement, Body, ModelChunk, Update, UploadChunk

_PUBLISH = 3
_RETAINED = 0x01
_QOS = 0x06
_PACKETS = {
    1: "CONNECT, CONNACK",
    2: "CONNECT, CONNACK",
    4: "PUBACK",
    8: "SUBSCRIBE, SUBACK",
    9: "SUBSCRIBE, SUBACK",
    10: "SUBSCRIBE, SUBACK",
    11: "SUBSCRIBE, SUBACK",
    12: "PING",
    13: "PING",
    14: "DISCONNECT",
}
_MAX_PACKET_BYTES = 1 << 28
MODEL = ": model"
"""Ends the line of bytes that are part of a model or an update."""


@dataclass(frozen=True)
class Line:
    """What bytes are counted under."""

    way: Way
    what: str


@dataclass
class MqttBytes:
    """A tap for `CountingProxy` on a broker; counts devices' connections alone.

    Attributes:
        lines: bytes of each kind.
        packets: packets of each kind.
        at_version: version -> device -> bytes up and down until it held what brings it there, that included.
    """

    lines: Counter[Line] = field(default_factory=Counter)
    packets: Counter[Line] = field(default_factory=Counter)
    at_version: dict[int, dict[str, list[int]]] = field(default_factory=dict)
    snapshot_bytes: int = 0
    """Bytes of packets with chunks of snapshots of version 0: a run's start."""
    _framers: dict[tuple[Connection, Way], Framer] = field(default_factory=dict)
    _moved: dict[str, list[int]] = field(default_factory=dict)
    _version5: set[Connection] = field(default_factory=set)

    def __call__(self, connection: Connection, way: Way, data: bytes) -> None:
        """Take in a piece of a stream."""
        if not is_device(connection.name):
            return
        framer = self._framers.setdefault((connection, way), Framer(_MAX_PACKET_BYTES))
        for first, body in framer.feed(data):
            size = 1 + _length_bytes(len(body)) + len(body)
            self._moved.setdefault(connection.name, [0, 0])[way == "down"] += size
            kind = first >> 4
            if kind == 1 and body[2 + int.from_bytes(body[:2])] == 5:
                self._version5.add(connection)
            if kind != _PUBLISH:
                self._add(Line(way, _PACKETS.get(kind, f"packet type {kind}")), size)
                continue
            topic, payload = _publish(first, body, version5=connection in self._version5)
            self._message(connection, way, topic, payload, size=size, retained=bool(first & _RETAINED))

    def to_version(self, version: int) -> tuple[int, int]:
        """Bytes up and down of all devices until each held `version`."""
        held = self.at_version[version].values()
        return sum(each[0] for each in held), sum(each[1] for each in held)

    def table(self) -> Iterator[tuple[Line, int, int]]:
        """Lines with their packets and bytes, the largest first."""
        for line, size in self.lines.most_common():
            yield line, self.packets[line], size

    def _add(self, line: Line, size: int) -> None:
        self.lines[line] += size
        self.packets[line] += 1

    def _message(
        self, connection: Connection, way: Way, topic: str, payload: bytes, *, size: int, retained: bool
    ) -> None:
        try:
            body = open_envelope(topic, payload).body
        except RemoteError:
            self._add(Line(way, "not a message"), size)
            return
        what = type(body).__name__.lower()
        if retained:
            what += " (retained copy)"
        model = _model_bytes(body)
        if model:
            self._add(Line(way, f"{what}{MODEL}"), model)
        self._add(Line(way, what), size - model)
        if way == "down" and isinstance(body, Announcement):
            moved = list(self._moved[connection.name])
            self.at_version.setdefault(body.manifest.version, {}).setdefault(connection.name, moved)
        elif way == "down" and isinstance(body, ModelChunk):
            if body.version == 0:
                self.snapshot_bytes += size
            held = self.at_version.get(body.version, {}).get(connection.name)
            if held is not None:
                held[1] += size


def is_device(name: str) -> bool:
    """Whether an MQTT client id is one of a demo's devices."""
    return "-dev-" in name


def _model_bytes(body: Body) -> int:
    match body:
        case Announcement(inline_delta=bytes() as data):
            return len(data)
        case ModelChunk(data=data) | Update(data=data) | UploadChunk(data=data):
            return len(data)
        case _:
            return 0


def _publish(first: int, body: bytes, *, version5: bool) -> tuple[str, bytes]:
    """Topic and payload (MQTT 3.1.1 and 5, section 3.3)."""
    end = 2 + int.from_bytes(body[:2])
    topic = body[2:end].decode()
    if first & _QOS:
        end += 2
    if version5:
        end += 1 + body[end]  # properties; a length of one byte, since nothing long is sent there
    return topic, body[end:]


def _length_bytes(length: int) -> int:
    return max(1, -(-length.bit_length() // 7))
