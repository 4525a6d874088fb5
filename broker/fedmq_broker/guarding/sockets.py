"""How many bytes each TCP connection of a port has brought so far, as the kernel counts them: sock_diag(7) of Linux.

It costs the broker nothing, sees what never reaches the coordinator, and needs no rights. Elsewhere than on Linux, and
where the broker runs in another network namespace (a container), there are no figures.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_INFO: Final = 2  # INET_DIAG_INFO
_ESTABLISHED: Final = 1 << 1
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI")
_ID: Final = struct.Struct(">HH16s16s")
_ID_REST: Final = bytes(12)  # interface and cookie
_MESSAGE_BYTES: Final = 72
_ID_AT: Final = 4
_ATTRIBUTE: Final = struct.Struct("=HH")
_RECEIVED: Final = struct.Struct("=Q")
_RECEIVED_AT: Final = 128  # tcpi_bytes_received in struct tcp_info, since Linux 4.1
_PIECE_BYTES: Final = 65_536

Peer = tuple[str, int]
"""Address and port."""


def received_bytes(ports: frozenset[int]) -> dict[Peer, int]:
    """Payload bytes that came in on each established connection to one of this machine's `ports`, by its other end."""
    if sys.platform != "linux":
        return {}
    found: dict[Peer, int] = {}
    with contextlib.suppress(OSError):
        for family in (socket.AF_INET, socket.AF_INET6):
            found |= dict(_ask(family, ports))
    return found


def _ask(family: int, ports: frozenset[int]) -> Iterator[tuple[Peer, int]]:
    assert sys.platform == "linux"
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(5.0)
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _ESTABLISHED)
        body += _ID.pack(0, 0, b"", b"") + _ID_REST
        diag.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, 1, 0) + body)
        while True:
            data = diag.recv(_PIECE_BYTES)
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in {_NLMSG_DONE, _NLMSG_ERROR} or length < _HEADER.size:
                    return
                yield from _read(data[_HEADER.size : length], ports)
                data = data[(length + 3) & ~3 :]


def _read(message: bytes, ports: frozenset[int]) -> Iterator[tuple[Peer, int]]:
    if len(message) < _MESSAGE_BYTES:
        return
    ours, theirs, _, address = _ID.unpack_from(message, _ID_AT)
    if ours not in ports:
        return
    rest = message[_MESSAGE_BYTES:]
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        if length < _ATTRIBUTE.size:
            return
        if kind == _INFO and length >= _ATTRIBUTE.size + _RECEIVED_AT + _RECEIVED.size:
            (count,) = _RECEIVED.unpack_from(rest, _ATTRIBUTE.size + _RECEIVED_AT)
            yield (_address(message[0], address), theirs), count
            return
        rest = rest[(length + 3) & ~3 :]


def _address(family: int, packed: bytes) -> str:
    """As Mosquitto's log writes it."""
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(packed[:4]))
    long = ipaddress.IPv6Address(packed)
    return str(long.ipv4_mapped or long)


def plain(address: str) -> str:
    """An address in one way of writing it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str((parsed.version == 6 and parsed.ipv4_mapped) or parsed)  # noqa: PLR2004 - IP version 6
