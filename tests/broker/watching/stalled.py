"""A subscriber that reads what comes and acknowledges nothing, as a hung device does."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def stalled_subscriber(port: int, client_id: str, topic: str) -> Iterator[socket.socket]:
    """Connected with MQTT 3.1.1, subscribed to `topic` at QoS 1, and silent from then on."""
    name, wanted = client_id.encode(), topic.encode()
    connect = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2) + name
    subscribe = b"\x00\x01" + len(wanted).to_bytes(2) + wanted + b"\x01"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(bytes([0x10, len(connect)]) + connect)
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        sock.sendall(bytes([0x82, len(subscribe)]) + subscribe)
        assert sock.recv(5)[:1] == b"\x90"
        yield sock
