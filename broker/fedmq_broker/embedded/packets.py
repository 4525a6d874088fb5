"""The packets of MQTT 3.1.1 that a broker without QoS 2 reads and writes. Section numbers are the standard's.

Decoding is strict: what breaks the standard raises, because a peer that sends it is broken or hostile, and the standard
says to close the connection (section 4.8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from fedmq_protocol.errors import RemoteError

PROTOCOL_LEVEL: Final = 4
_LENGTH_BYTES = 4  # at most, of the remaining length


class MalformedPacketError(RemoteError):
    """Bytes that are no MQTT 3.1.1, or a packet that a client must not send."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Section 3.3. `packet_id` is 0 at QoS 0."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    packet_id: int = 0


@dataclass(frozen=True, slots=True)
class Connect:
    """Section 3.1. Where `level` is not ours, nothing behind it was read."""

    level: int = PROTOCOL_LEVEL
    client_id: str = ""
    keepalive_s: int = 0
    clean_session: bool = True
    will: Publish | None = None
    username: str | None = None
    password: bytes | None = None


@dataclass(frozen=True, slots=True)
class Connack:
    """Section 3.2."""

    return_code: int


@dataclass(frozen=True, slots=True)
class Puback:
    """Section 3.4."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Section 3.8: filters with the QoS asked for."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Suback:
    """Section 3.9: the QoS granted, or 0x80."""

    packet_id: int
    return_codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Section 3.10."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsuback:
    """Section 3.11."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pingreq:
    """Section 3.12."""


@dataclass(frozen=True, slots=True)
class Pingresp:
    """Section 3.13."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Section 3.14."""


FromClient: TypeAlias = Connect | Publish | Puback | Subscribe | Unsubscribe | Pingreq | Disconnect
FromBroker: TypeAlias = Connack | Publish | Puback | Suback | Unsuback | Pingresp


class Framer:
    """Cuts a stream of bytes into packets, and takes no memory for one that is too large.

    Attributes:
        max_packet_bytes: the largest packet body accepted from now on.
    """

    def __init__(self, max_packet_bytes: int) -> None:
        self.max_packet_bytes = max_packet_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The packets that `data` completes: first byte and body (section 2.2).

        Raises:
            MalformedPacketError: a length of more than four bytes, or above the limit.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while True:
                header_end, length = self._header(start)
                if header_end == 0 or len(buffer) - header_end < length:
                    return
                first, end = buffer[start], header_end + length
                with memoryview(buffer) as view:
                    body = bytes(view[header_end:end])
                start = end
                yield first, body
        finally:
            del buffer[:start]

    def _header(self, start: int) -> tuple[int, int]:
        """Where the body begins, and its length; (0, 0) while that is not known."""
        buffer, length = self._buffer, 0
        for index in range(_LENGTH_BYTES):
            position = start + 1 + index
            if position >= len(buffer):
                return 0, 0
            byte = buffer[position]
            length |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:  # noqa: PLR2004  # the continuation bit
                if length > self.max_packet_bytes:
                    raise MalformedPacketError(
                        f"a packet of {length} bytes, above the limit of {self.max_packet_bytes}",
                        reason="too-large",
                    )
                return position + 1, length
        raise MalformedPacketError("a remaining length of more than four bytes")


# ------------------------------------------------------------------------------------------------ decoding


class _Reader:
    """Takes fields off a packet's body."""

    __slots__ = ("_body", "_position")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._body) - self._position

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._body):
            raise MalformedPacketError("a packet is shorter than its fields say")
        data = self._body[self._position : end]
        self._position = end
        return data

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self.take(2))

    def packet_id(self) -> int:
        number = self.number()
        if number == 0:
            raise MalformedPacketError("a packet identifier of 0")
        return number

    def binary(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        try:
            text = self.binary().decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedPacketError("a string that is not UTF-8") from None
        if "\0" in text:
            raise MalformedPacketError("a string with a null character")
        return text

    def rest(self) -> bytes:
        return self.take(self.left)

    def finish(self) -> None:
        if self.left:
            raise MalformedPacketError("a packet is longer than its fields say")


def decode(first: int, body: bytes) -> FromClient:
    """The packet that a client sent.

    Raises:
        MalformedPacketError: it breaks the standard, or is one that clients of this broker may not send.
    """
    kind, flags = first >> 4, first & 0x0F
    if kind == 3:  # noqa: PLR2004  # packet types are the table in section 2.2.1
        return _decode_publish(flags, body)
    if flags != (0x02 if kind in {8, 10} else 0):
        raise MalformedPacketError(f"packet type {kind} with flags {flags:#x}")
    reader = _Reader(body)
    packet: FromClient
    match kind:
        case 1:
            return _decode_connect(reader)
        case 4:
            packet = Puback(reader.packet_id())
        case 8:
            packet = _decode_subscribe(reader)
        case 10:
            packet = _decode_unsubscribe(reader)
        case 12:
            packet = Pingreq()
        case 14:
            packet = Disconnect()
        case _:
            raise MalformedPacketError(f"packet type {kind}, which is not for clients, or belongs to QoS 2")
    reader.finish()
    return packet


def _decode_publish(flags: int, body: bytes) -> Publish:
    qos = flags >> 1 & 0x03
    if qos > 1:
        raise MalformedPacketError("a message at QoS 2, which this broker does not offer")
    reader = _Reader(body)
    topic = reader.text()
    packet_id = reader.packet_id() if qos else 0
    return Publish(topic, reader.rest(), qos, bool(flags & 0x01), bool(flags & 0x08), packet_id)


def _decode_connect(reader: _Reader) -> Connect:
    name, level = reader.text(), reader.byte()
    if name not in {"MQTT", "MQIsdp"}:
        raise MalformedPacketError("a first packet that is no MQTT")
    if name != "MQTT" or level != PROTOCOL_LEVEL:
        return Connect(level=level if name == "MQTT" else 0)
    flags = reader.byte()
    will_flag, will_qos, will_retain = bool(flags & 0x04), flags >> 3 & 0x03, bool(flags & 0x20)
    has_password, has_username = bool(flags & 0x40), bool(flags & 0x80)
    if flags & 0x01 or will_qos > 2 or (not will_flag and (will_qos or will_retain)):  # noqa: PLR2004
        raise MalformedPacketError(f"a CONNECT with flags {flags:#x}")
    if has_password and not has_username:
        raise MalformedPacketError("a CONNECT with a password and no user name")
    keepalive_s, client_id = reader.number(), reader.text()
    will = None
    if will_flag:
        topic = reader.text()
        will = Publish(topic, reader.binary(), min(will_qos, 1), will_retain)
    username = reader.text() if has_username else None
    password = reader.binary() if has_password else None
    reader.finish()
    return Connect(level, client_id, keepalive_s, bool(flags & 0x02), will, username, password)


def _decode_subscribe(reader: _Reader) -> Subscribe:
    packet_id = reader.packet_id()
    filters: list[tuple[str, int]] = []
    while reader.left:
        topic_filter, qos = reader.text(), reader.byte()
        if qos > 2:  # noqa: PLR2004
            raise MalformedPacketError(f"a subscription at QoS {qos}")
        filters.append((topic_filter, qos))
    if not filters:
        raise MalformedPacketError("a SUBSCRIBE without filters")
    return Subscribe(packet_id, tuple(filters))


def _decode_unsubscribe(reader: _Reader) -> Unsubscribe:
    packet_id = reader.packet_id()
    filters: list[str] = []
    while reader.left:
        filters.append(reader.text())
    if not filters:
        raise MalformedPacketError("an UNSUBSCRIBE without filters")
    return Unsubscribe(packet_id, tuple(filters))


# ------------------------------------------------------------------------------------------------ encoding


def encode(packet: FromBroker) -> bytes:
    """The bytes of a packet that we send."""
    match packet:
        case Publish():
            topic = packet.topic.encode()
            head = struct.pack("!H", len(topic)) + topic
            if packet.qos:
                head += struct.pack("!H", packet.packet_id)
            first = 0x30 | packet.duplicate << 3 | packet.qos << 1 | packet.retain
            return b"".join((_fixed_header(first, len(head) + len(packet.payload)), head, packet.payload))
        case Puback():
            return struct.pack("!BBH", 0x40, 2, packet.packet_id)
        case Connack():
            return struct.pack("!BBBB", 0x20, 2, 0, packet.return_code)
        case Suback():
            codes = bytes(packet.return_codes)
            return _fixed_header(0x90, 2 + len(codes)) + struct.pack("!H", packet.packet_id) + codes
        case Unsuback():
            return struct.pack("!BBH", 0xB0, 2, packet.packet_id)
        case Pingresp():
            return b"\xd0\x00"


def _fixed_header(first: int, length: int) -> bytes:
    header = bytearray((first,))
    while True:
        length, byte = length >> 7, length & 0x7F
        header.append(byte | 0x80 if length else byte)
        if not length:
            return bytes(header)
