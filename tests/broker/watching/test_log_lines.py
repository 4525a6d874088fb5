"""Lines of Mosquitto's log, recorded from 2.0.11 and 2.1.2, but those that are marked otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_broker.watching.log_lines import KINDS, LogEvent, parse

RECORDED = [
    ("1795420257: New client connected from 127.0.0.1:58924 as dev-07 (p2, c1, k60).", "connected", "dev-07"),
    (
        "2026-11-23T07:53:44: New client connected from 127.0.0.1:36382 as dev-1 (p2, c1, k60, u'dev-1').",
        "connected",
        "dev-1",
    ),
    ("1795420257: Outgoing messages are being dropped for client dev-07.", "dropped", "dev-07"),
    ("1795420258: Client twin already connected, closing old connection.", "taken-over", "twin"),
    ("1795420259: Client big disconnected due to oversize packet.", "oversize", "big"),
    ("1795420260: Client <unknown> disconnected due to protocol error.", "protocol-error", ""),
    ("1795420261: Client dev-07 closed its connection.", "lost", "dev-07"),
    ("1795420262: Client sleepy has exceeded timeout, disconnecting.", "lost", "sleepy"),
    ("2026-11-23T07:53:44: Client dev-1 disconnected.", "left", "dev-1"),
    ("2026-11-23T07:53:44: Client <unknown> disconnected: Protocol error.", "protocol-error", ""),
    ("2026-11-23T07:53:44: Client <unknown> disconnected, not authorised.", "refused", ""),
    (
        "2026-11-23T07:53:44: OpenSSL Error[0]: error:0A000086:SSL routines::certificate verify failed",
        "tls-error",
        "",
    ),
    (
        "2026-11-23T07:53:44: OpenSSL Error[0]: error:0A0000C7:SSL routines::peer did not return a certificate",
        "tls-error",
        "",
    ),
    # From the program's own list of texts.
    ("1: Client dev-1 been disconnected by administrative action.", "thrown-out", "dev-1"),
    ("Client dev-1 disconnected due to out of memory.", "out-of-memory", "dev-1"),
    ("Client connection from 127.0.0.1 denied: max_connections exceeded.", "full", ""),
]
RECORDED_2_1 = [
    ("1795423449: New client connected from 127.0.0.1:60350 as dev-07 (p4, c1, k60).", "connected", "dev-07"),
    ("1795423450: Outgoing messages are being dropped for client dev-07.", "dropped", "dev-07"),
    ("1795423451: Client twin [127.0.0.1:56653] disconnected: session taken over.", "taken-over", "twin"),
    ("1795423452: Client big [127.0.0.1:53511] disconnected: oversize packet.", "oversize", "big"),
    ("1795423453: Client 127.0.0.1 [127.0.0.1:37826] disconnected: protocol error.", "protocol-error", ""),
    (
        "1795423453: Client dev-07 [127.0.0.1:60350] disconnected: connection closed by client.",
        "lost",
        "dev-07",
    ),
    ("1795423454: Client sleepy [127.0.0.1:37840] disconnected: exceeded timeout.", "lost", "sleepy"),
    # From the program's own list of texts.
    ("1: Client dev-1 [10.0.0.7:4711] disconnected: administrative action.", "thrown-out", "dev-1"),
    ("1: Client dev-1 [::1:4711] disconnected: Connection reset by peer.", "lost", "dev-1"),
    ("1: Client dev-1 [10.0.0.7:4711] disconnected.", "left", "dev-1"),
]


@pytest.mark.parametrize(("line", "kind", "client"), RECORDED + RECORDED_2_1)
def test_what_befell_whom(line: str, kind: str, client: str) -> None:
    line = line.removeprefix("1: ")
    event = parse(line)
    assert event is not None
    assert (event.kind, event.client) == (kind, client)
    assert line.endswith(event.text)
    assert not event.text[0].isdigit()


@pytest.mark.parametrize(
    "line",
    [
        "1795420257: New connection from 127.0.0.1:58924 on port 21883.",
        "1795420167: mosquitto version 2.0.11 running",
        "1795420167: Config loaded from m.conf.",
        "",
    ],
)
def test_what_is_about_nobody_is_passed_over(line: str) -> None:
    assert parse(line) is None


def test_a_name_cannot_pretend_to_be_a_text() -> None:
    """A client id may be any text; what stands before it decides."""
    cheat = "x already connected, closing old connection."
    assert parse(f"1795420258: Client {cheat} disconnected.") == LogEvent(
        "left", cheat, f"Client {cheat} disconnected."
    )


@given(st.text())
def test_any_text_is_borne(line: str) -> None:
    event = parse(line)
    assert event is None or event.kind in KINDS
