"""A device that a test drives, and its coordinator."""

from __future__ import annotations

import pytest

from tests.edge_agent.core.driven import Device
from tests.edge_agent.scripted import ScriptedCoordinator


@pytest.fixture
def coordinator() -> ScriptedCoordinator:
    return ScriptedCoordinator()


@pytest.fixture
def device(coordinator: ScriptedCoordinator) -> Device:
    return Device(coordinator)


@pytest.fixture
def joined(device: Device) -> Device:
    device.join()
    return device
