"""The federation's state: a fold over the journal. What is here survives a kill; what is not may be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.devices import Device
from fedmq_coordinator.core.replay import steps_before_snapshot
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.traffic import Meter, Moved
from fedmq_protocol.errors import RemoteError, StoreError

RUNS_ANSWERED: Final = 4
"""So many of the runs that are over, at least, still know what became of each update; how many more, the next says."""
OUTCOMES_KEPT: Final = 20_000
"""What runs that are over may know of updates together. Ten devices that each filled their window: 31 runs."""
_SKIPPED_LEASES: Final = 1 << 20
"""More than a copy of a journal can be behind."""


class FederationState:
    """Epoch, devices by their keys, and runs. Changed by `apply` alone."""

    def __init__(self) -> None:
        self.epoch = 0
        self.num_facts = 0
        """How many were applied: the number of the newest one in the journal."""
        self.devices: dict[str, Device] = {}
        self.runs: dict[str, Run] = {}
        self.queue: list[str] = []
        self._active: str | None = None
        self._skip_steps: dict[str, int] = {}
        self._skipped_leases = 0
        """By runs that are still to be made, too: one of the same name may have been made since a copy was."""
        self._meter = Meter()
        # What the journal knows of each device; `devices` may have heard more since.
        self._moved = Moved()
        self._sessions: dict[str, int] = {}

    @property
    def active(self) -> Run | None:
        """The run that trains now."""
        return None if self._active is None else self.runs[self._active]

    @property
    def current(self) -> Run | None:
        """The active run, or else the one that ended last and whose model is still at hand."""
        if self._active is not None:
            return self.runs[self._active]
        over = [run for run in self.runs.values() if run.over and run.holds_model]
        return max(over, key=lambda run: run.ended_at or 0.0, default=None)

    def replay(
        self, read: Callable[[], Iterable[f.Fact]], outline: Callable[[], Iterable[f.Fact]] | None = None
    ) -> int:
        """Fold the journal, after a first look at where its snapshots are.

        Args:
            read: gives all facts.
            outline: gives the same for the first look, where payloads need not be there; None: `read`.

        Returns:
            The number of facts.

        Raises:
            StoreError: a fact contradicts those before it.
        """
        self.look_ahead((outline or read)(), {})
        return self.fold(read())

    def look_ahead(self, facts: Iterable[f.Fact], steps: Mapping[str, int]) -> Mapping[str, int]:
        """Before `fold`: see where the snapshots are, so that it computes no model that a later one makes needless.

        Args:
            facts: those that will be folded; payloads need not be there.
            steps: how many steps each run has taken before them.

        Returns:
            For each run, how many steps its newest snapshot among these facts holds.
        """
        self._skip_steps = steps_before_snapshot(facts, steps)
        return self._skip_steps

    def fold(self, facts: Iterable[f.Fact]) -> int:
        """Apply the facts that come next in the journal.

        Returns:
            How many they are.

        Raises:
            StoreError: a fact contradicts those before it.
        """
        before = self.num_facts
        for fact in facts:
            try:
                self.apply(fact)
            except (KeyError, ValueError, RemoteError) as error:
                msg = f"the journal contradicts itself at fact {self.num_facts} ({type(fact).__name__}): {error}"
                raise StoreError(msg) from error
        self._skip_steps = {}
        return self.num_facts - before

    def restore_devices(self, known: Iterable[tuple[str, bytes]]) -> None:
        """The devices with these names and keys, as the facts leave them that everything else was kept of."""
        for name, public_key in known:
            self.devices[name] = Device.remembered(
                name,
                public_key,
                session=self._sessions.get(name, 0),
                moved=self._moved.by_device.get(name, (0, 0)),
                counters=self._meter.seen.get(name),
            )

    def apply(self, fact: f.Fact) -> None:
        """Make a fact so: the next one of the journal."""
        self.num_facts += 1
        match fact:
            case f.EpochBegun():
                self.epoch = fact.epoch
                if fact.outrun:
                    self._skip_leases()
            case f.DeviceEnrolled():
                self.devices[fact.device] = Device(fact.device, fact.public_key)
            case f.TrafficSeen():
                self._count(fact.device, fact.sent, fact.received)
            case f.RunCreated():
                self.runs[fact.run] = Run(fact, skip_steps=self._skip_steps.get(fact.run, 0))
                self.runs[fact.run].numbers.created = self.num_facts
                self.runs[fact.run].skip_leases(self._skipped_leases)
                self.queue.append(fact.run)
            case f.RunActivated():
                self.queue.remove(fact.run)
                for run in self.runs.values():
                    run.release_model()
                self._forget_settled()
                self.runs[fact.run].apply(fact)
                self._active = fact.run
            case f.RunEnded():
                if self._active == fact.run:
                    self._active = None
                if fact.run in self.queue:
                    self.queue.remove(fact.run)
                self.runs[fact.run].apply(fact)
            case f.RunFact():
                self.runs[fact.run].apply(fact)
                if isinstance(fact, f.UpdateAccepted):
                    self._remember(fact)
                elif isinstance(fact, f.VersionPublished):
                    numbers = self.runs[fact.run].numbers
                    numbers.published(self.num_facts, snapshot=fact.snapshot is not None)
            case _:
                msg = f"unknown fact {type(fact).__name__}"
                raise AssertionError(msg)

    def _skip_leases(self) -> None:
        self._skipped_leases += _SKIPPED_LEASES
        for run in self.runs.values():
            if not run.over:
                run.skip_leases(_SKIPPED_LEASES)

    def _forget_settled(self) -> None:
        """A receipt is repeated as it was for as long as its run is among those that ended last."""
        over = [run for run in self.runs.values() if run.over and not run.closed]
        over.sort(key=lambda run: run.ended_at or 0.0)
        known = 0
        for place, run in enumerate(
            reversed(over)
        ):  # of those that ended at once, the later one is the newer
            known += sum(map(len, run.settled.values()))
            if place >= RUNS_ANSWERED and known > OUTCOMES_KEPT:
                run.forget_settled()

    def _remember(self, fact: f.UpdateAccepted) -> None:
        """What an update says of its sender."""
        if fact.traffic is not None:
            self._count(fact.device, *fact.traffic)
        if fact.device in self.devices:
            self.devices[fact.device].replays.advance(fact.session)
            self._sessions[fact.device] = max(fact.session, self._sessions.get(fact.device, 0))

    def _count(self, device: str, sent: int, received: int) -> None:
        """Enter what a device moved since its last word into its own account, and into that of the run under way."""
        grown = self._meter.grown(device, sent, received)
        if device in self.devices:
            self.devices[device].count_traffic((sent, received))
            self._moved.add(device, *grown)
        if self.current is not None:
            self.current.moved.add(device, *grown)
