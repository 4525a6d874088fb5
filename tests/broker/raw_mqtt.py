"""MQTT 3.1.1 by hand, for what a library would not do: read nothing, acknowledge nothing, publish without end."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

_PUBLISH, _PUBACK = 0x30, 0x40


def remaining_length(size: int) -> bytes:
    """MQTT's variable length, section 2.2.3."""
    out = bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | 0x80 * (size > 0))
        if not size:
            return bytes(out)


def _text(text: str) -> bytes:
    return len(text).to_bytes(2) + text.encode()


class RawClient:
    """One connection to a port of the loopback interface."""

    def __init__(self, port: int, client_id: str, *, timeout_s: float = 60) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._buffer = bytearray()
        self._send(0x10, _text("MQTT") + b"\x04\x02\x00\x00" + _text(client_id))
        kind, body = self._packet()
        assert (kind, body) == (0x20, b"\x00\x00"), (kind, body)

    def subscribe(self, topic_filter: str) -> None:
        self._send(0x82, b"\x00\x01" + _text(topic_filter) + b"\x01")
        assert self._packet()[1][-1] == 1

    def request(self, topic_filter: str) -> None:
        """Subscribe, and read nothing, not even the answer."""
        self._send(0x82, b"\x00\x01" + _text(topic_filter) + b"\x01")

    def publish(self, topic: str, payloads: list[bytes], *, retain: bool = False) -> None:
        """Publish at QoS 1 and wait for each acknowledgement, in windows of a hundred."""
        for first in range(0, len(payloads), 100):
            window = payloads[first : first + 100]
            for mid, payload in enumerate(window, 1):
                self._send(_PUBLISH | 0x02 | retain, _text(topic) + mid.to_bytes(2) + payload)
            for _ in window:
                assert self._packet()[0] == _PUBACK

    def say(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1, and leave the acknowledgement to whoever reads next."""
        self._send(_PUBLISH | 0x02, _text(topic) + b"\x00\x01" + payload)

    def take(self) -> bytes:
        """The next message's payload; it is acknowledged."""
        while True:
            kind, body = self._packet()
            if kind & 0xF0 != _PUBLISH:
                continue
            start = 2 + int.from_bytes(body[:2])
            if kind & 0x06:
                self._send(_PUBACK, body[start : start + 2])
                start += 2
            return body[start:]

    def drain(self) -> list[bytes]:
        """Take and acknowledge all messages up to one that says `end`; their payloads."""
        payloads: list[bytes] = []
        while (payload := self.take()) != b"end":
            payloads.append(payload)
        return payloads

    def is_cut_off(self) -> bool:
        """Whether the other side ends the connection, before anything else comes."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionError:
            return True

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _send(self, kind: int, body: bytes) -> None:
        self._socket.sendall(bytes([kind]) + remaining_length(len(body)) + body)

    def _packet(self) -> tuple[int, bytes]:
        kind = self._take(1)[0]
        size = shift = 0
        while True:
            byte = self._take(1)[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return kind, self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the broker ended the connection")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()
