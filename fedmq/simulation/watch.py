"""What can be seen of a history while it happens: a `Watch` is told, and decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmq.simulation.coordinator import VirtualCoordinator
    from fedmq.simulation.device import VirtualDevice
    from fedmq_coordinator.core.effects import Effect as CoordinatorEffect
    from fedmq_coordinator.core.events import Event as CoordinatorEvent
    from fedmq_coordinator.core.facts import Fact
    from fedmq_edge_agent.core.effects import Effect as DeviceEffect
    from fedmq_edge_agent.core.effects import Restore, Train
    from fedmq_edge_agent.core.events import Event as DeviceEvent

Vector = NDArray[np.float32]


class Trained(NamedTuple):
    """One training: p = change + before, payload carries C(p), and after = p - C(p) is left.

    Attributes:
        change: float32[num_parameters].
        before: likewise, the old residual as it went in, its bound applied; None: nothing.
        payload: the update's bytes.
        after: float32[num_parameters], the new residual.
    """

    change: Vector
    before: Vector | None
    payload: bytes
    after: Vector


class Watch:
    """Told of everything, before or after it is done as each method says. By default it looks away."""

    def device_told(self, device: VirtualDevice, event: DeviceEvent) -> None:
        """Before a device's core handles an event."""

    def device_did(self, device: VirtualDevice, effect: DeviceEffect) -> None:
        """After an effect of a device is done."""

    def device_started(self, device: VirtualDevice) -> None:
        """Its core has been made of what is on its disk."""

    def device_died(self, device: VirtualDevice, why: str) -> None:
        """Its power, or its process, is gone."""

    def held(self, device: VirtualDevice, run: str, version: int, replica: Vector) -> None:
        """Its trainer holds a version: float32[size], read only."""

    def trained(self, device: VirtualDevice, request: Train, trained: Trained) -> None:
        """Its trainer has trained, and its files are written; nothing refers to them yet."""

    def restored(self, device: VirtualDevice, request: Restore, before: Vector | None, after: Vector) -> None:
        """Its trainer has put a refused update back: residuals, float32[num_parameters]."""

    def coordinator_told(self, coordinator: VirtualCoordinator, event: CoordinatorEvent) -> None:
        """Before the coordinator's core handles an event."""

    def journaled(self, coordinator: VirtualCoordinator, facts: Sequence[Fact]) -> None:
        """Facts are on disk, and nothing that relies on them has been said."""

    def coordinator_did(self, coordinator: VirtualCoordinator, effect: CoordinatorEffect) -> None:
        """After an effect of the coordinator is done."""

    def coordinator_started(self, coordinator: VirtualCoordinator) -> None:
        """Its core has been made of its journal, and not been told of anything yet."""

    def coordinator_died(self, coordinator: VirtualCoordinator, why: str) -> None:
        """Its process is gone, and with it what was not on disk."""
