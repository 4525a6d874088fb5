"""One history: a plan, carried out under the eyes of a witness until every run is over and all is settled."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedmq.simulation.broker import Limits
from fedmq.simulation.coordinator import CoordinatorOptions
from fedmq.simulation.device import DeviceOptions
from fedmq.simulation.faults.books import Books, Vector
from fedmq.simulation.faults.broken import BrokenError
from fedmq.simulation.faults.drawing import more_faults, more_run
from fedmq.simulation.faults.hostile import HostileNetwork
from fedmq.simulation.faults.plan import COORDINATOR, Fault, Plan
from fedmq.simulation.faults.saboteur import Saboteur
from fedmq.simulation.faults.same_bits import differences
from fedmq.simulation.faults.task import PacedTask
from fedmq.simulation.faults.witness import Entry, Witness
from fedmq.simulation.federation import FEDERATION, Cast, Federation
from fedmq.simulation.network import Calm
from fedmq_coordinator.core.events import StopRequested
from fedmq_coordinator.core.settings import RunSettings

FEWEST_EVENTS: Final = 200
FEWEST_FAULTS: Final = 3
_STORM_S: Final = 4 * 3_600.0
"""So long faults may strike; then they end."""
_CALM_S: Final = 12 * 3_600.0
"""So long a run may take to end once they have."""
_SETTLE_S: Final = 3_600.0
_FULL_MAIL: Final = 8
"""One history in so many parses every packet from its bytes, another one packs them; the time buys more histories."""
_CHECKPOINTS: Final = (0, 0, 5, 40)
"""So many facts lie between two checkpoints of a history's coordinator."""
_UNDER_WAY: Final = (1_000, 1, 1_000, 2)
"""So many updates are admitted at once; in every other four histories devices take turns."""
_MOST_RUNS: Final = 10


@dataclass(frozen=True)
class Broken:
    """What did not hold, where."""

    invariant: str
    text: str
    concerned: tuple[str, ...]
    at_event: int
    trace: str = ""


@dataclass
class Outcome:
    """How a history went.

    Attributes:
        plan: as it was in the end: with the faults and runs that were added because it was too short.
        broken: the invariant that was violated, if one was.
        events: told to cores.
        struck: faults that took effect, by kind.
        facts: about the history, for the coverage.
        log: what happened last, for the story.
    """

    plan: Plan
    broken: Broken | None = None
    events: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    log: list[Entry] = field(default_factory=list)


class History:
    """Builds the world of a plan, and lets it run.

    Args:
        plan: what is to happen.
        lengthen: add runs and faults until there have been enough; off where a plan is replayed as it stands.
    """

    def __init__(self, plan: Plan, *, lengthen: bool = True) -> None:
        self._plan, self._lengthen = plan, lengthen
        self._asked = 0
        self._stopped = False
        self._done: dict[int, Fault] = {}
        """Faults that took effect, by identity: a stall does so with every message."""
        self.outcome = Outcome(plan)
        names = {f"fedmq-{FEDERATION}-{device.name}": device.name for device in plan.devices}
        task = PacedTask(plan.parameters, {device.name: device.train_s for device in plan.devices})
        cast = Cast(
            task,
            [device.name for device in plan.devices],
            {
                device.name: DeviceOptions(
                    outbox_limit=device.outbox_limit,
                    max_packet_bytes=device.packet_bytes,
                    ahead_s=device.ahead_s,
                    rate=device.rate,
                )
                for device in plan.devices
            },
            CoordinatorOptions(
                max_packet_bytes=plan.packet_bytes,
                checkpoint_facts=_CHECKPOINTS[plan.seed // 2 % len(_CHECKPOINTS)],
                under_way=_UNDER_WAY[plan.seed // 4 % len(_UNDER_WAY)],
            ),
            Limits(plan.inflight, plan.queued),
            evaluate=_evaluate if plan.seed % 3 else None,
            parsed=plan.seed % _FULL_MAIL == 0,
            packed=plan.seed % _FULL_MAIL == 1,
        )
        self.books = Books()
        self.federation = Federation(plan.seed, cast, network=Calm(), watch=None)
        world = self.federation.world
        self.network = HostileNetwork(
            world, plan.latency_s, names | {f"{FEDERATION}-coordinator": COORDINATOR}, self._struck
        )
        self.federation.broker.network = self.network
        self.saboteur = Saboteur(self.network, self._struck, self.books)
        self.witness = Witness(world, self.books, self.saboteur)
        self.federation.coordinator.watch = self.witness
        for device in self.federation.devices.values():
            device.watch = self.witness
        world.after_step = self._after_step

    def _after_step(self) -> None:
        self.witness.check()
        stops_at = self._plan.stops_at
        if stops_at is not None and not self._stopped and self.saboteur.events >= stops_at and self._enough:
            self._stopped = True
            self._plan = self._plan.but(stops_at=self.saboteur.events)
            coordinator = self.federation.coordinator
            for name in list(coordinator.core.runs):
                coordinator.submit(StopRequested(name))

    def _struck(self, fault: Fault) -> None:
        if id(fault) not in self._done:
            self._done[id(fault)] = fault
            self.outcome.struck[fault.kind] += 1
            self.witness.struck(fault)

    def run(self) -> Outcome:
        """Let it happen, to its end or to the first broken invariant."""
        outcome = self.outcome
        try:
            self._run()
        except BrokenError as error:
            outcome.broken = Broken(error.invariant, error.text, error.concerned, self.saboteur.events)
        except Exception as error:  # noqa: BLE001 - whatever a core raises is what we look for
            trace = traceback.format_exc()
            text = f"{type(error).__name__}: {error}"
            outcome.broken = Broken("crash", text, (), self.saboteur.events, trace)
        outcome.plan, outcome.events = self._plan, self.saboteur.events
        outcome.log = list(self.witness.log) if outcome.broken else []
        self._count()
        return outcome

    def _run(self) -> None:
        federation, world = self.federation, self.federation.world
        self.saboteur.begin(federation, self._plan.faults)
        federation.coordinator.start()
        for device in self._plan.devices:
            world.after(device.joins_at_s, federation.devices[device.name].start)
        self._ask(self._plan.asked_at_once)
        end = world.now + _STORM_S
        while True:
            world.run(end, done=self._over)
            if not self._over():
                break
            if self._asked == len(self._plan.runs):
                if not self._lengthen or self._enough or self._asked >= _MOST_RUNS:
                    break
                self._add()
            self._ask(1)
        self.saboteur.calm()
        world.run(world.now + _CALM_S, done=self._over)
        if not self._over():
            view = federation.coordinator.core.run_view(f"r{self._asked}", now=federation.coordinator.now)
            raise BrokenError(
                "liveness", f"{view.run} is {view.state}, and waits for {view.waiting}", COORDINATOR
            )
        world.run(world.now + _SETTLE_S, done=self._settled)
        self._close()
        if self._lengthen and not self._enough:
            text = f"{self.saboteur.events} events and {len(self._done)} faults are too few to show anything"
            raise BrokenError("length", text)

    def _add(self) -> None:
        """One run more, and further faults: it was too short."""
        number = len(self._plan.runs)
        faults = tuple(map(self.saboteur.later, more_faults(self._plan, number)))
        self.saboteur.expect(faults)
        runs = (*self._plan.runs, more_run(self._plan, number))
        self._plan = self._plan.but(faults=self._plan.faults + faults, runs=runs)

    def _ask(self, count: int) -> None:
        """Ask for the next runs of the plan."""
        for settings in self._plan.runs[self._asked : self._asked + count]:
            self._asked += 1
            schema = self.federation.cast.learner.schema
            initial = (np.cos(np.arange(schema.size)) * 2.0**10).round().astype(np.float32) * np.float32(
                2.0**-12
            )
            self.federation.request(
                RunSettings.model_validate(settings), run=f"r{self._asked}", initial=initial
            )

    @property
    def _enough(self) -> bool:
        """For a history; a plan that is replayed as it stands has the faults that it has."""
        enough_faults = len(self._done) >= FEWEST_FAULTS or not self._lengthen
        return self.saboteur.events >= FEWEST_EVENTS and enough_faults

    def _over(self) -> bool:
        return self.books.num_over == self._asked

    def _settled(self) -> bool:
        """Nothing is open, and nothing is on its way to the disk."""
        return (
            not self.federation.coordinator.is_writing and not self.books.settled() and not self._unwritten()
        )

    def _unwritten(self) -> list[str]:
        """Devices whose books are to be committed yet."""
        devices = self.federation.devices.values()
        return [device.name for device in devices if device.agent.desk.ledger.commit_at is not None]

    def _close(self) -> None:
        """The end: nothing is open, and the journal gives the same again."""
        left = self.books.settled()
        if left:
            text = f"{left[0]} still waits, an hour after the last run has ended"
            raise BrokenError("liveness", text, left[0].split()[3], COORDINATOR)
        unwritten = self._unwritten()
        if unwritten:
            raise BrokenError("liveness", f"{unwritten[0]} does not write its books", unwritten[0])
        self.books.close()
        coordinator = self.federation.coordinator
        different = differences(coordinator.core, coordinator.make_core())
        if different:
            raise BrokenError("fold", f"the journal comes back with another {different[0]}", COORDINATOR)
        self.books.same_state(coordinator.core, coordinator.make_core(), "the journal")
        if coordinator.options.checkpoint_facts:
            self.books.same_state(coordinator.core, coordinator.resumed_core(), "the checkpoint")

    def _count(self) -> None:
        facts, books = self.outcome.facts, self.books
        facts["updates"] += len(books.updates)
        facts["accepted"] += sum(update.verdict == "accepted" for update in books.updates.values())
        facts["restored"] += sum(update.told == "restore" for update in books.updates.values())
        facts["discarded"] += sum(update.told == "discard" for update in books.updates.values())
        facts["lost with a disk"] += sum(update.lost for update in books.updates.values())
        facts["versions"] += sum(model.version + 1 for model in books.models.values())
        facts["rebases"] += sum(model.rebases for model in books.models.values())
        facts["kills and stops"] += self.witness.kills
        facts["messages dropped from full queues"] += self.federation.broker.num_dropped


def _evaluate(vector: Vector) -> tuple[float, int, dict[str, float]]:
    return float(np.abs(vector).sum()), 10, {"accuracy": 0.5}
