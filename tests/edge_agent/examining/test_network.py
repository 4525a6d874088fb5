"""Names that nobody knows, ports that nobody answers, and a peer that says nothing."""

from __future__ import annotations

import socket
import threading

import pytest

from fedmq_broker.probe import find_free_port
from tests.edge_agent.examining.clinic import Clinic, findings_of


async def test_a_name_that_nobody_knows(clinic: Clinic) -> None:
    found = await findings_of(
        clinic.settings(1, {"url": "mqtts://broker.invalid:8883"}), "name", "route", "tls"
    )
    assert found["name"].level == "failed"
    assert "broker.invalid" in found["name"].found
    assert "DNS" in found["name"].mend or "/etc/resolv.conf" in found["name"].mend
    assert found["route"].level == "skipped"
    assert found["route"].found == "needs name"


async def test_a_name_server_that_says_nothing(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    silence = threading.Event()
    monkeypatch.setattr("fedmq_edge_agent.examining.network.resolve", lambda *_: silence.wait())
    monkeypatch.setattr("fedmq_edge_agent.examining.network.RESOLVE_S", 0.05)
    found = await findings_of(clinic.settings(1, {"url": "mqtts://broker.home:8883"}), "name")
    silence.set()
    assert found["name"].level == "failed"
    assert "no DNS server answers" in found["name"].found


async def test_a_name_that_cannot_be_one(clinic: Clinic) -> None:
    label = "a" * 70
    found = await findings_of(clinic.settings(1, {"url": f"mqtts://{label}.home:8883"}), "name")
    assert found["name"].level == "failed"
    assert found["name"].mend


async def test_a_port_on_which_nothing_listens(clinic: Clinic) -> None:
    port = find_free_port("127.0.0.1")
    found = await findings_of(clinic.settings(port), "name", "route", "tls")
    assert found["route"].level == "failed"
    assert f"nothing listens at 127.0.0.1:{port}" in found["route"].found
    assert "fedmq broker status" in found["route"].mend


async def test_a_peer_that_takes_the_connection_and_says_nothing(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmq_edge_agent.examining.handshake.CONNECT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = await findings_of(
            clinic.settings(server.getsockname()[1]),
            "agent",
            "certificate",
            "name",
            "route",
            "tls",
            "connection",
        )
    assert found["route"].level == "ok"
    assert found["tls"].level == "failed"
    assert "no TLS handshake" in found["tls"].found
    assert found["connection"].level == "skipped"
