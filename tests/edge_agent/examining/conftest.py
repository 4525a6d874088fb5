"""A clinic on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker_fixtures import CustomBroker
from tests.edge_agent.examining.clinic import Clinic


@pytest.fixture
def clinic(tmp_path: Path, custom_mosquitto: Callable[[str], CustomBroker]) -> Clinic:
    return Clinic(tmp_path / "clinic", custom_mosquitto)
