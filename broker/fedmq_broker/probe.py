"""Is there an MQTT broker, and is the port free? Questions to a TCP port, without an MQTT library."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

# CONNECT of MQTT 3.1.1 (section 3.1): clean session, keepalive 5 s, client id "fedmq-probe".
_CLIENT_ID = b"fedmq-probe"
_CONNECT = b"\x00\x04MQTT\x04\x02\x00\x05" + len(_CLIENT_ID).to_bytes(2) + _CLIENT_ID
_CONNECT_PACKET = bytes([0x10, len(_CONNECT)]) + _CONNECT
_DISCONNECT_PACKET = b"\xe0\x00"
_CONNACK_BYTES = 4
_MOST_REMEMBERED = 4_096
_ANY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104  # recognised, not bound


def reachable_host(host: str) -> str:
    """The address by which to reach, on this machine, what listens on `host`."""
    return _ANY.get(host, host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def answers_mqtt(host: str, port: int, *, timeout_s: float = 1.0) -> bool:
    """Whether something at the address answers a CONNECT with a CONNACK, be it a refusal."""
    try:
        with socket.create_connection((reachable_host(host), port), timeout=timeout_s) as sock:
            sock.sendall(_CONNECT_PACKET)
            answer = b""
            while len(answer) < _CONNACK_BYTES:
                data = sock.recv(_CONNACK_BYTES - len(answer))
                if not data:
                    return False
                answer += data
            with contextlib.suppress(OSError):
                sock.sendall(_DISCONNECT_PACKET)
    except OSError:
        return False
    return answer[:2] == b"\x20\x02"


def port_is_free(host: str, port: int) -> bool:
    """Whether we could listen there now.

    Raises:
        OSError: the address is not one of this machine's, or the port is one that we may not use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what lingers in TIME_WAIT does not count
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


_found: set[int] = set()
"""Ports that this process was told of: who asks for three gets three, though none of them is taken yet."""


def find_free_port(host: str) -> int:
    """A port that is free now, and another one at each call. Somebody else may take it before we do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if len(_found) >= _MOST_REMEMBERED:
        _found.clear()
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
            port = sock.getsockname()[1]
        assert isinstance(port, int)
        if port not in _found:
            _found.add(port)
            return port
