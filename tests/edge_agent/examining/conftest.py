"""A clinic on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker_fixtures import PATIENCE_S, CustomBroker
from tests.edge_agent.examining.clinic import Clinic


@pytest.fixture(autouse=True)
def _soon_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is about, but where a test says so: there is no need to wait for it for long."""
    monkeypatch.setattr("fedmq_edge_agent.examining.talking.ALONE_S", 0.6)


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes may come late, on a machine that does much else; what a test wants not to come, it says itself."""
    for limit in (
        "network.CONNECT_S",
        "network.RESOLVE_S",
        "handshake.CONNECT_S",
        "handshake._VERDICT_S",
        "line.CONNECT_S",
        "federation.RETAINED_S",
        "training._SLOW_S",
        "unit._PATIENCE_S",
    ):
        monkeypatch.setattr(f"fedmq_edge_agent.examining.{limit}", PATIENCE_S)
    monkeypatch.setattr("fedmq_edge_agent.examining.training.CHILD_S", 8 * PATIENCE_S)


@pytest.fixture
def clinic(tmp_path: Path, custom_mosquitto: Callable[[str], CustomBroker]) -> Clinic:
    return Clinic(tmp_path / "clinic", custom_mosquitto)
