"""Sees all of a history: enters it in the books, has the saboteur strike, and remembers it for the story."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fedmq.simulation.coordinator import VirtualCoordinator
from fedmq.simulation.device import VirtualDevice
from fedmq.simulation.faults.books import Books, Vector
from fedmq.simulation.faults.bounds import Bounds
from fedmq.simulation.faults.broken import BrokenError
from fedmq.simulation.faults.plan import COORDINATOR, Fault
from fedmq.simulation.faults.saboteur import Saboteur
from fedmq.simulation.watch import Trained, Watch
from fedmq.simulation.world import World
from fedmq_coordinator.core.effects import Effect as CoordinatorEffect
from fedmq_coordinator.core.events import Event as CoordinatorEvent
from fedmq_coordinator.core.events import TimePassed as CoordinatorTimePassed
from fedmq_coordinator.core.facts import Fact
from fedmq_edge_agent.core.effects import Effect as DeviceEffect
from fedmq_edge_agent.core.effects import Restore, Train
from fedmq_edge_agent.core.events import Event as DeviceEvent
from fedmq_edge_agent.core.events import TimePassed as DeviceTimePassed

Entry = tuple[float, str, str, object]
"""When, who, what kind of thing, and the thing."""

_REMEMBERED = 4_000


class Witness(Watch):
    """The one `Watch` of a history; `check` is the world's `after_step`.

    Args:
        world: the clock.
        books: the ledger.
        saboteur: strikes.
    """

    def __init__(self, world: World, books: Books, saboteur: Saboteur) -> None:
        self._world, self.books, self._saboteur = world, books, saboteur
        self._bounds = Bounds()
        self._touched: dict[str, VirtualDevice | VirtualCoordinator] = {}
        self.log: deque[Entry] = deque(maxlen=_REMEMBERED)
        self.kills = 0

    def _note(self, who: str, kind: str, what: object) -> None:
        self.log.append((self._world.now, who, kind, what))

    def struck(self, fault: Fault) -> None:
        """A fault took effect."""
        self._note(fault.who, "fault", fault)

    def check(self) -> None:
        """What must hold of all that were touched by this step."""
        if not self._touched:
            return
        touched, self._touched = self._touched, {}
        for party in touched.values():
            if not party.alive:
                continue
            if isinstance(party, VirtualDevice):
                self._bounds.device(party)
            elif not party.is_busy:
                self._bounds.coordinator(party)

    # ------------------------------------------------------------------------------ devices

    def device_told(self, device: VirtualDevice, event: DeviceEvent) -> None:
        self._note(device.name, "told", event)
        self._touched[device.name] = device
        if isinstance(event, DeviceTimePassed):
            self._bounds.woken(device.name, self._world.now)
        self._saboteur.device_told(device, event)

    def device_did(self, device: VirtualDevice, effect: DeviceEffect) -> None:
        self._note(device.name, "did", effect)
        self.books.device_did(device, effect)
        self._saboteur.device_did(device, effect)

    def device_started(self, device: VirtualDevice) -> None:
        self._note(device.name, "started", device.starts)
        self._touched[device.name] = device
        self.books.device_started(device)

    def device_died(self, device: VirtualDevice, why: str) -> None:
        self._note(device.name, "died", why)
        self.kills += 1
        self._saboteur.device_died(device, why)

    def held(self, device: VirtualDevice, run: str, version: int, replica: Vector) -> None:
        self.books.held(device, run, version, replica)

    def trained(self, device: VirtualDevice, request: Train, trained: Trained) -> None:
        self.books.trained(device, request, trained)

    def restored(self, device: VirtualDevice, request: Restore, before: Vector | None, after: Vector) -> None:
        self.books.restored(device, request, before, after)

    # ------------------------------------------------------------------------------ the coordinator

    def coordinator_told(self, coordinator: VirtualCoordinator, event: CoordinatorEvent) -> None:
        self._note(COORDINATOR, "told", event)
        self._touched[COORDINATOR] = coordinator
        self.books.coordinator_told(coordinator, event)
        if isinstance(event, CoordinatorTimePassed):
            self._bounds.woken(COORDINATOR, self._world.now)
        self._saboteur.coordinator_told(coordinator, event)

    def journaled(self, coordinator: VirtualCoordinator, facts: Sequence[Fact]) -> None:
        for fact in facts:
            self._note(COORDINATOR, "journal", fact)
        self._touched[COORDINATOR] = coordinator
        self.books.journaled(coordinator, facts)
        self._saboteur.journaled(coordinator, facts)

    def coordinator_did(self, coordinator: VirtualCoordinator, effect: CoordinatorEffect) -> None:
        self._note(COORDINATOR, "did", effect)
        self.books.coordinator_did(coordinator, effect)

    def coordinator_started(self, coordinator: VirtualCoordinator) -> None:
        self._note(COORDINATOR, "started", coordinator.starts)
        self.books.coordinator_started(coordinator)

    def coordinator_died(self, coordinator: VirtualCoordinator, why: str) -> None:
        self._note(COORDINATOR, "died", why)
        self.kills += 1
        if coordinator.halted:
            raise BrokenError("epoch", f"the coordinator ends itself: {coordinator.halted}", COORDINATOR)
        self._saboteur.coordinator_died(coordinator, why)
