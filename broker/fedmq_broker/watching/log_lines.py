"""Mosquitto's log, line by line: who was dropped, refused, thrown out.

Mosquitto publishes its log below `$SYS/broker/log/` where `log_dest topic` is set, a line a message, with a time stamp.
Texts are those of 2.0.11 and 2.1.2 (`loop.c`, `handle_connect.c`, `database.c`, `net.c`). A line that is not known is
not about a client, or of no concern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

Kind = Literal[
    "connected",
    "left",
    "lost",
    "dropped",
    "taken-over",
    "thrown-out",
    "refused",
    "oversize",
    "protocol-error",
    "tls-error",
    "out-of-memory",
    "full",
]
"""What befell a client:

- `connected`, `left` (it said goodbye), `lost` (it vanished: its socket broke, or it was silent for too long);
- `dropped`: its queue is full, and messages for it are lost;
- `taken-over`: somebody connected with the same name;
- `thrown-out`: by an operator;
- `refused`: a wrong password, no such member;
- `oversize`: it sent a packet above the limit;
- `protocol-error`: it sent what is no MQTT; `tls-error`: a certificate that is not believed, or none;
- `out-of-memory`: the broker's own limit; `full`: no more connections are taken.
"""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

TROUBLE: Final[frozenset[Kind]] = frozenset(KINDS) - {"connected", "left", "lost"}
"""What an operator should see."""

_UNKNOWN: Final = "<unknown>"
_MAX_LINE_CHARS: Final = 2_000
_STAMP: Final = re.compile(r"^(?:\d{9,11}|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[+-]\d{4})?): ")
_TEXTS: Final[tuple[tuple[str, Kind], ...]] = (
    (r"^New client connected from \S+ as (?P<client>.+) \(p\d, c\d, k\d+", "connected"),
    (r"^Outgoing messages are being dropped for client (?P<client>.+)\.$", "dropped"),
    (r"^Client (?P<client>.+) already connected, closing old connection\.$", "taken-over"),
    (r"^Client (?P<client>.+) been disconnected by administrative action\.$", "thrown-out"),
    (r"^Client (?P<client>.+) disconnected, not authorised\.$", "refused"),
    (r"^Client (?P<client>.+) disconnected due to oversize (?:packet|payload)\.$", "oversize"),
    (r"^Client (?P<client>.+) disconnected due to out of memory\.$", "out-of-memory"),
    (
        r"^Client (?P<client>.+) disconnected due to (?:malformed packet|protocol error|QoS .+)\.$",
        "protocol-error",
    ),
    (r"^Client (?P<client>.+) disconnected: Protocol error\.$", "protocol-error"),
    (r"^Client (?P<client>.+) (?:closed its connection|has exceeded timeout, disconnecting)\.$", "lost"),
    (r"^Client (?P<client>.+) disconnected: .+\.$", "lost"),
    (r"^Client (?P<client>.+?)(?: \[[^\]]*\])? disconnected\.$", "left"),
    (r"^Bad socket read/write on client (?P<client>.+): ", "lost"),
    (r"^Bad client (?P<client>.+) sending multiple CONNECT messages\.$", "protocol-error"),
    (r"^Client (?P<client>.+) connected with too large Will payload$", "oversize"),
    (r"^Client connection from \S+ denied: max_connections exceeded\.$", "full"),
    (r"^OpenSSL Error\[\d+\]: ", "tls-error"),
)
"""As 2.0.11 writes them."""
_PATTERNS: Final = tuple((re.compile(text), kind) for text, kind in _TEXTS)

_ENDED: Final = re.compile(r"^Client (?P<client>.+) \[(?P<address>.*):\d+\] disconnected: (?P<why>[^:]+)\.$")
"""As 2.1.2 writes all of them; who is not known yet is called by the address."""
_WHY: Final[dict[str, Kind]] = {
    "administrative action": "thrown-out",
    "bad authentication method": "refused",
    "bad username or password": "refused",
    "client banned": "refused",
    "client identifier not valid": "refused",
    "connection closed by client": "lost",
    "connection rate exceeded": "full",
    "exceeded timeout": "lost",
    "malformed packet": "protocol-error",
    "not authorised": "refused",
    "out of memory": "out-of-memory",
    "oversize packet": "oversize",
    "oversize payload": "oversize",
    "protocol error": "protocol-error",
    "receive maximum exceeded": "protocol-error",
    "session taken over": "taken-over",
    "topic alias invalid": "protocol-error",
}
"""Other reasons are the socket's."""


@dataclass(frozen=True)
class LogEvent:
    """Something that befell a client.

    Attributes:
        client: its client id, which on a federation's own Mosquitto is the member's name; empty where Mosquitto does
            not know it yet.
        text: the line, without its time stamp.
    """

    kind: Kind
    client: str
    text: str


def parse(line: str) -> LogEvent | None:
    """What a line of the log tells of a client; None: nothing."""
    text = _STAMP.sub("", line[:_MAX_LINE_CHARS].rstrip("\n"), count=1)
    if (ended := _ENDED.match(text)) is not None:
        client = ended["client"] if ended["client"] != ended["address"] else ""
        return LogEvent(_WHY.get(ended["why"], "lost"), client, text)
    for pattern, kind in _PATTERNS:
        found = pattern.match(text)
        if found is not None:
            client = found.groupdict().get("client", "")
            return LogEvent(kind, "" if client == _UNKNOWN else client, text)
    return None
