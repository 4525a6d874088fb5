"""Carries out a plan's faults on the parties: kills, cuts, restarts, clocks, disks; messages are `hostile`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from fedmq.simulation.coordinator import VirtualCoordinator
from fedmq.simulation.device import VirtualDevice
from fedmq.simulation.disk import VirtualDisk
from fedmq.simulation.faults.books import Backup, Books
from fedmq.simulation.faults.hostile import HostileNetwork
from fedmq.simulation.faults.plan import COORDINATOR, ON_MESSAGES, Fault
from fedmq.simulation.federation import Federation
from fedmq.simulation.watch import Watch
from fedmq_coordinator.core.effects import Effect as CoordinatorEffect
from fedmq_coordinator.core.events import Event as CoordinatorEvent
from fedmq_coordinator.core.facts import Fact
from fedmq_edge_agent.core.effects import Effect as DeviceEffect
from fedmq_edge_agent.core.events import Event as DeviceEvent
from fedmq_edge_agent.core.events import PacketArrived, TrainerAnswered, TrainingFinished

_AT_EFFECTS = frozenset({"device-dies", "device-power-cut"})
_AT_BATCHES = frozenset(
    {
        "coordinator-dies-before-commit",
        "coordinator-dies-after-commit",
        "coordinator-dies-between-sends",
        "coordinator-stops",
    }
)


class Saboteur(Watch):
    """Counts what happens, and strikes.

    Args:
        network: for stalls and last wills.
        struck: told of every fault that takes effect.
        books: told of a disk that is about to be replaced.
    """

    def __init__(
        self,
        network: HostileNetwork,
        struck: Callable[[Fault], None],
        books: Books,
    ) -> None:
        self._network, self._struck, self._books = network, struck, books
        self._backups: dict[int, tuple[VirtualDisk, Backup]] = {}
        self._federation: Federation
        self.events = 0
        self._at_event: dict[int, list[Fault]] = {}
        self._at_effect: dict[tuple[str, str], dict[int, list[Fault]]] = {}
        self._at_batch: dict[int, list[Fault]] = {}
        self._effects: Counter[tuple[str, str]] = Counter()
        self._batches = 0
        self._at_told: dict[tuple[str, str, int], list[Fault]] = {}
        self._told: Counter[tuple[str, str]] = Counter()
        self._dying: dict[str, Fault] = {}

    def begin(self, federation: Federation, faults: Iterable[Fault]) -> None:
        """The world is there; strike from now on."""
        self._federation = federation
        self.expect(faults)
        self._next_batch()

    def expect(self, faults: Iterable[Fault]) -> None:
        """Have these faults strike as well, those whose count has not passed already."""
        faults = list(faults)
        self._network.expect(faults)
        for fault in faults:
            if fault.kind in ON_MESSAGES:
                continue
            if fault.kind in _AT_EFFECTS:
                self._at_effect.setdefault((fault.who, fault.what), {}).setdefault(fault.at, []).append(fault)
            elif fault.kind in _AT_BATCHES:
                self._at_batch.setdefault(fault.at, []).append(fault)
            elif fault.what:
                self._at_told.setdefault((fault.who, fault.what, fault.at), []).append(fault)
            else:
                self._at_event.setdefault(fault.at, []).append(fault)
                if fault.kind == "device-restored":
                    self._at_event.setdefault(fault.at - fault.extra, []).append(fault)

    def later(self, fault: Fault) -> Fault:
        """The same, counted from now on."""
        if fault.kind in ON_MESSAGES:
            passed = self._network.count(fault)
        elif fault.kind in _AT_EFFECTS:
            passed = self._effects[fault.who, fault.what]
        elif fault.kind in _AT_BATCHES:
            passed = self._batches
        elif fault.what:
            passed = self._told[fault.who, fault.what]
        else:
            passed = self.events
        return replace(fault, at=fault.at + passed)

    def calm(self) -> None:
        """No more faults; who is down comes up."""
        federation = self._federation
        self._network.calm()
        for pending in (self._at_event, self._at_effect, self._at_batch, self._at_told, self._dying):
            pending.clear()
        federation.broker.start()
        federation.coordinator.spare()
        federation.coordinator.start()
        for device in federation.devices.values():
            device.disk.full = False
            device.spare()
            device.start()

    # ------------------------------------------------------------------------------ counting

    def device_told(self, device: VirtualDevice, event: DeviceEvent) -> None:
        self._count_event()
        if isinstance(event, PacketArrived) and event.topic.endswith("/receipt"):
            for fault in self._count_told(device, "receipt"):
                self._federation.world.after(0.0, partial(self._strike, fault))
        elif isinstance(event, TrainerAnswered) and isinstance(event.answer, TrainingFinished):
            for fault in self._count_told(
                device, "training"
            ):  # its files are written, and its commit is next
                self._strike_device(device, fault)

    def coordinator_told(self, coordinator: VirtualCoordinator, event: CoordinatorEvent) -> None:  # noqa: ARG002
        self._count_event()

    def _count_told(self, device: VirtualDevice, what: str) -> list[Fault]:
        self._told[device.name, what] += 1
        return self._at_told.pop((device.name, what, self._told[device.name, what]), [])

    def _count_event(self) -> None:
        self.events += 1
        if self.events in self._at_event:
            for fault in self._at_event.pop(self.events):
                self._federation.world.after(0.0, partial(self._strike, fault))

    def device_did(self, device: VirtualDevice, effect: DeviceEffect) -> None:
        effects, name = self._effects, device.name
        for key in ((name, type(effect).__name__), (name, "")):
            count = effects[key] = effects.get(key, 0) + 1
            due = self._at_effect.get(key)
            if due is not None and count in due:
                fault = due.pop(count)[0]
                self._network.next_will(fault)
                torn = self._federation.world.stream("torn", device.name, device.starts)
                self._dying[device.name] = fault
                device.fail_after(
                    fault.extra,
                    down_s=fault.seconds,
                    torn=torn if fault.kind == "device-power-cut" else None,
                )

    def journaled(self, coordinator: VirtualCoordinator, facts: Sequence[Fact]) -> None:  # noqa: ARG002
        self._batches += 1
        self._next_batch()

    def coordinator_did(self, coordinator: VirtualCoordinator, effect: CoordinatorEffect) -> None:
        """Nothing is counted by it."""

    def _next_batch(self) -> None:
        """Prepare what is to happen at the next batch."""
        due = self._at_batch.pop(self._batches + 1, [])
        coordinator = self._federation.coordinator
        for fault in due[:1]:
            match fault.kind:
                case "coordinator-dies-before-commit":
                    coordinator.fail_at("before-commit", down_s=fault.seconds)
                case "coordinator-dies-after-commit":
                    coordinator.fail_at("after-commit", down_s=fault.seconds)
                case "coordinator-dies-between-sends":
                    coordinator.fail_at("after-commit", sends=fault.extra, down_s=fault.seconds)
                case _:
                    self._federation.world.after(0.0, partial(self._stop_coordinator, fault))
                    return
            self._dying[COORDINATOR] = fault

    def device_died(self, device: VirtualDevice, why: str) -> None:  # noqa: ARG002
        fault = self._dying.pop(device.name, None)
        if fault is not None:
            self._struck(fault)

    def coordinator_died(self, coordinator: VirtualCoordinator, why: str) -> None:  # noqa: ARG002
        fault = self._dying.pop(COORDINATOR, None)
        if fault is not None:
            self._network.next_will(fault)
            self._struck(fault)

    # ------------------------------------------------------------------------------ striking

    def _strike(self, fault: Fault) -> None:
        """Faults that come at the count-th event of all."""
        federation = self._federation
        device = federation.devices.get(fault.who)
        if fault.kind == "stall":
            self._network.stall(fault)  # struck when it holds something up
        elif fault.kind == "disconnect":
            self._disconnect(fault)
        elif fault.kind in {"broker-restarts", "broker-forgets"}:
            self._restart_broker(fault)
        elif fault.kind == "clock-jumps":
            (device or federation.coordinator).clock.jump(fault.seconds)
            self._struck(fault)
        elif device is not None and device.alive:
            self._strike_device(device, fault)

    def _strike_device(self, device: VirtualDevice, fault: Fault) -> None:
        world = self._federation.world
        match fault.kind:
            case "device-stops":
                self._struck(fault)
                device.stop()
                world.after(fault.seconds, device.start)
            case "trainer-dies":
                if device.crash_trainer():
                    self._struck(fault)
            case "device-wiped":
                self._replace_disk(device, fault, None)
            case "device-restored" if id(fault) not in self._backups:
                self._backups[id(fault)] = device.disk.copy(), self._books.backup(device)
            case "device-restored":
                self._replace_disk(device, fault, self._backups[id(fault)])
            case "disk-full":
                device.disk.full = True
                before = device.disk.refused
                world.after(fault.seconds, lambda: self._disk_has_room(device, fault, before))
            case "file-rots":
                names = [name for name in device.disk.files if name[1].startswith(("base-", "delta-"))]
                if names:
                    name = names[fault.at % len(names)]
                    device.disk.files[name] = bytes(len(device.disk.files[name]))
                    self._struck(fault)
            case _:
                raise AssertionError(fault)

    def _replace_disk(
        self, device: VirtualDevice, fault: Fault, backup: tuple[VirtualDisk, Backup] | None
    ) -> None:
        """A new card, empty or with what was on it before."""
        world = self._federation.world
        self._struck(fault)
        self._network.next_will(fault)
        device.cut_power(why="its memory card is replaced")
        self._books.disk_replaced(device, None if backup is None else backup[1])
        # Its clock may have gone with the old card, or be behind the sessions of that: none, a day, or as it was.
        chance = world.stream("new card", device.name, device.starts)
        device.clock.jump(chance.choice((-device.clock(), -86_400.0, 0.0)))
        if backup is None:
            device.disk.wipe()
        else:
            device.disk.restore(backup[0])
        world.after(fault.seconds, device.start)

    def _disk_has_room(self, device: VirtualDevice, fault: Fault, before: int) -> None:
        device.disk.full = False
        if device.disk.refused > before:
            self._struck(fault)

    def _disconnect(self, fault: Fault) -> None:
        federation = self._federation
        party = federation.devices.get(fault.who) or federation.coordinator
        if party.alive and party.connection.is_connected:
            self._struck(fault)
            self._network.next_will(fault)
            federation.broker.cut(party.connection.client_id)

    def _restart_broker(self, fault: Fault) -> None:
        federation = self._federation
        broker = federation.broker
        if broker.up:
            self._struck(fault)
            broker.stop(keep_retained=fault.kind == "broker-restarts")
            federation.world.after(fault.seconds, broker.start)

    def _stop_coordinator(self, fault: Fault) -> None:
        coordinator = self._federation.coordinator
        if coordinator.alive:
            self._struck(fault)
            coordinator.stop()
            self._federation.world.after(fault.seconds, coordinator.start)
