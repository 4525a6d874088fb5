"""A clinic on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker_fixtures import CustomBroker
from tests.edge_agent.examining.clinic import Clinic


@pytest.fixture(autouse=True)
def _soon_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is about, but where a test says so: there is no need to wait for it for long."""
    monkeypatch.setattr("fedmq_edge_agent.examining.talking.ALONE_S", 0.6)


@pytest.fixture
def clinic(tmp_path: Path, custom_mosquitto: Callable[[str], CustomBroker]) -> Clinic:
    return Clinic(tmp_path / "clinic", custom_mosquitto)
