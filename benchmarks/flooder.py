"""A device with a valid certificate that means harm: each way of flooding a broker by a raw socket, as fast as it can.

    python benchmarks/flooder.py KIND ROOT PORT        until it is killed; prints a line a second: what it did so far

It speaks MQTT by hand: a client library would bound what it does.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.floods_stage import FEDERATION, FLOODER, HOST, Place
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.limits import MAX_PACKET_BYTES
from fedmq_protocol.messages import Hello, Presence
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

_MANY: Final = 1_000
_BATCH_BYTES: Final = 65_536
_SEALED: Final = 5_000
_TOPICS: Final = Topics(FEDERATION)

Attack = Callable[["Flooder"], None]


# ------------------------------------------------------------------------------------------- MQTT by hand


def _length(size: int) -> bytes:
    encoded = bytearray()
    while True:
        size, digit = divmod(size, 128)
        encoded.append(digit | (128 if size else 0))
        if not size:
            return bytes(encoded)


def _packet(head: int, body: bytes) -> bytes:
    return bytes([head]) + _length(len(body)) + body


def _text(value: str) -> bytes:
    return struct.pack(">H", len(value.encode())) + value.encode()


def connect_packet(will: tuple[str, bytes] | None = None) -> bytes:
    """MQTT 3.1.1, a clean session."""
    flags = 2 | (0b0010_1100 if will else 0)
    body = _text("MQTT") + bytes([4, flags]) + struct.pack(">H", 60) + _text(FLOODER)
    if will:
        body += _text(will[0]) + struct.pack(">H", len(will[1])) + will[1]
    return _packet(0x10, body)


def publish_packet(topic: str, payload: bytes, *, number: int = 0, retain: bool = False) -> bytes:
    """QoS 1 with a packet number, else QoS 0."""
    numbered = struct.pack(">H", number) if number else b""
    return _packet(0x30 | (2 if number else 0) | retain, _text(topic) + numbered + payload)


def subscribe_packet(number: int, filters: list[str], qos: int) -> bytes:
    """One SUBSCRIBE."""
    return _packet(0x82, struct.pack(">H", number) + b"".join(_text(each) + bytes([qos]) for each in filters))


# ------------------------------------------------------------------------------------------- the flooder


class Flooder:
    """Its identity, and what it has done so far."""

    def __init__(self, place: Place) -> None:
        self.place = place
        files = place.site.member(FLOODER)
        self._context = ssl.create_default_context(cafile=str(place.site.authority.ca))
        self._context.load_cert_chain(files.certificate, files.key)
        self.key = SigningKey(b"f" * 32)
        self.done: dict[str, int] = {"packets": 0, "bytes": 0, "connections": 0, "refused": 0}

    def tcp(self) -> socket.socket:
        """A connection without anything said."""
        sock = socket.create_connection((HOST, self.place.port), timeout=10)
        self.done["connections"] += 1
        return sock

    def tls(self) -> ssl.SSLSocket:
        """After the handshake."""
        return self._context.wrap_socket(self.tcp(), server_hostname=HOST)

    def hello(self) -> bytes:
        """The beginning of a TLS handshake."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._context.wrap_bio(incoming, outgoing, server_hostname=HOST).do_handshake()
        return outgoing.read()

    def mqtt(self, *, drains: bool = True) -> ssl.SSLSocket:
        """A session; what it is sent is read in the background, unless it pretends not to listen."""
        sock = self.tls()
        sock.sendall(connect_packet())
        if drains:
            threading.Thread(target=self._drain, args=(sock,), daemon=True).start()
        return sock

    @staticmethod
    def _drain(sock: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while sock.recv(65_536):
                pass

    def pour(self, packets: Iterator[bytes]) -> None:
        """Send without end; come again at once when thrown out."""
        while True:
            try:
                sock = self.mqtt()
                batch = bytearray()
                for packet in packets:
                    batch += packet
                    self.done["packets"] += 1
                    if len(batch) >= _BATCH_BYTES:
                        sock.sendall(batch)
                        self.done["bytes"] += len(batch)
                        batch.clear()
            except OSError:
                self.done["refused"] += 1

    def tell(self) -> None:
        """A line a second."""
        while True:
            time.sleep(1)
            print(self.done, flush=True)


def _numbers() -> Iterator[int]:
    return itertools.cycle(range(1, 65_536))


def _small(flooder: Flooder, *, qos: int, topic: str) -> None:
    packets = [publish_packet(topic, b"garbage" * 4, number=number * qos) for number in range(1, 20_001)]
    flooder.pour(itertools.cycle(packets))


def _signed(flooder: Flooder) -> None:
    topic = _TOPICS.up(FLOODER, "hello")
    session = int(time.time() * 1000)
    sealer = Sealer(sender=FLOODER, epoch=session, key=flooder.key)
    where = _TOPICS.presence(FLOODER)
    birth = Presence(online=True, session=session, public_key=flooder.key.public_key)
    packets = [publish_packet(where, sealer.seal(where, birth), number=1, retain=True)]
    packets += [publish_packet(topic, sealer.seal(topic, Hello()), number=n) for n in range(2, _SEALED)]
    flooder.pour(itertools.cycle(packets))


def _largest(flooder: Flooder) -> None:
    topic = _TOPICS.up(FLOODER, "update")
    payload = bytes(MAX_PACKET_BYTES - len(topic) - 10)
    flooder.pour(publish_packet(topic, payload, number=number) for number in _numbers())


def _retained(flooder: Flooder) -> None:
    topic = _TOPICS.presence(FLOODER)
    packets = [publish_packet(topic, bytes([n % 256]) * 100, number=n, retain=True) for n in range(1, 20_001)]
    flooder.pour(itertools.cycle(packets))


def _subscriptions(flooder: Flooder) -> None:
    flooder.pour(
        subscribe_packet(number, [_TOPICS.chunk("x", count * 8 + n, "delta", 0) for n in range(8)], 1)
        for count, number in enumerate(_numbers())
    )


def _connections(flooder: Flooder) -> None:
    held: list[socket.socket] = []
    while True:
        try:
            held.append(flooder.mqtt(drains=False))
        except OSError:
            flooder.done["refused"] += 1
        if len(held) > _MANY:
            held.pop(0).close()


def _tcp(flooder: Flooder, said: bytes = b"") -> None:
    """A thousand at a time that say nothing, or no more than this; then others in their place."""
    held: list[socket.socket] = []
    while True:
        try:
            sock = flooder.tcp()
            if said:
                sock.sendall(said)
            held.append(sock)
        except OSError:
            flooder.done["refused"] += 1
            time.sleep(0.01)
        if len(held) > _MANY:
            held.pop(0).close()


def _half(flooder: Flooder) -> None:
    """Half of a largest packet, in a session, and of the largest CONNECT there can be before one; then silence."""
    whole = publish_packet(_TOPICS.up(FLOODER, "update"), bytes(MAX_PACKET_BYTES - 100), number=1)
    held: list[socket.socket] = []
    while True:
        try:
            session = flooder.mqtt(drains=False)
            session.sendall(whole[: len(whole) // 2])
            for _ in range(10):
                stranger = flooder.tls()
                stranger.sendall(b"\x10\xff\xff\xff\x7f" + bytes(50_000))
                held.append(stranger)
            held.append(session)
        except OSError:
            flooder.done["refused"] += 1
        if len(held) > _MANY:
            for sock in held[:11]:
                sock.close()
            del held[:11]


def _unread(flooder: Flooder, *, qos: int) -> None:
    """Ask for every chunk again and again, and read nothing."""
    filters = [f"{_TOPICS.root}/model/+/+/+"]
    while True:
        try:
            sock = flooder.mqtt(drains=False)
            for number in _numbers():
                sock.sendall(subscribe_packet(number, filters, qos))
                flooder.done["packets"] += 1
        except OSError:
            flooder.done["refused"] += 1


_OTHERS: Final = _TOPICS.up("dev-0", "hello")
ATTACKS: Final[dict[str, Attack]] = {
    "small-qos0": lambda flooder: _small(flooder, qos=0, topic=_TOPICS.up(FLOODER, "hello")),
    "small-qos1": lambda flooder: _small(flooder, qos=1, topic=_TOPICS.up(FLOODER, "hello")),
    "signed": _signed,
    "largest": _largest,
    "connections": _connections,
    "tcp": _tcp,
    "handshakes": lambda flooder: _tcp(flooder, flooder.hello()),
    "unread": lambda flooder: _unread(flooder, qos=1),
    "unread-qos0": lambda flooder: _unread(flooder, qos=0),
    "half": _half,
    "retained": _retained,
    "subscriptions": _subscriptions,
    "denied": lambda flooder: _small(flooder, qos=0, topic=_OTHERS),
    "denied-qos1": lambda flooder: _small(flooder, qos=1, topic=_OTHERS),
}


def main() -> None:
    """Flood until killed."""
    kind, root, port = sys.argv[1:]
    flooder = Flooder(Place(Path(root), int(port)))
    threading.Thread(target=flooder.tell, daemon=True).start()
    ATTACKS[kind](flooder)


if __name__ == "__main__":
    main()
