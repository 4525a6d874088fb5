"""A fleet's run in virtual time, from the first device's start to the figures."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from fedmq.simulation.broker import Limits
from fedmq.simulation.federation import FEDERATION, Cast, Federation
from fedmq.simulation.fleet import tables
from fedmq.simulation.fleet.figures import FleetFigures, VersionFigures
from fedmq.simulation.fleet.learners import CostLearner, Pace, TableLearner, expected_sizes
from fedmq.simulation.fleet.links import Lines, draw_lines
from fedmq.simulation.fleet.patient import PatientDevice
from fedmq.simulation.fleet.plan import NO_TASK, Plan
from fedmq.simulation.watch import Trained, Watch
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.settings import RunSettings
from fedmq_edge_agent.core.effects import Ask, Train
from fedmq_protocol.codecs import CodecSpec
from fedmq_protocol.messages import Announcement, Mode
from fedmq_protocol.topics import Topics

if TYPE_CHECKING:
    from fedmq.simulation.coordinator import VirtualCoordinator
    from fedmq.simulation.device import VirtualDevice
    from fedmq_edge_agent.core.effects import Effect

_JOINING_S: Final = 1_800.0
"""So long all devices are waited for; those that are not there by then come later."""
_STEP_S: Final = 1.0
_QUANTILES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)

Progress = Callable[[FleetFigures], None]


def simulate(plan: Plan, mode: Mode, *, progress: Progress = lambda _: None) -> FleetFigures:
    """Run a plan in one mode.

    Args:
        plan: what is asked.
        mode: in place of that in the plan's settings.
        progress: told of every version.
    """
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # looking through all devices again and again for rubbish that is not there takes a third of the time
    try:
        fleet = _Fleet(plan, mode, progress)
        fleet.run()
    finally:
        if collecting:
            gc.enable()
    fleet.figures.wall_s = time.perf_counter() - began
    return fleet.figures


class _Fleet(Watch):
    """The world, its fleet, and what is counted in it."""

    def __init__(self, plan: Plan, mode: Mode, progress: Progress) -> None:
        self._plan, self._progress = plan, progress
        self._settings = plan.settings.model_copy(update={"mode": mode, "seed": plan.seed})
        self.figures = FleetFigures(mode, target=plan.settings.target)
        self._busy_s: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self._delivered = 0
        rng = np.random.default_rng([plan.seed, 1])
        names = plan.names
        pace = Pace({name: plan.compute.draw(rng) for name in names}, plan.jitter)
        self._learner = self._make_learner(names, pace, rng)
        real = isinstance(self._learner, TableLearner)
        cast = Cast(
            self._learner,
            names,
            evaluate=self._learner.evaluate if isinstance(self._learner, TableLearner) else None,
            kind=PatientDevice,
            limits=Limits(inflight=20, queued=100_000),
        )
        self.federation = Federation(plan.seed, cast, network=None, watch=self)
        world = self.federation.world
        clients = [f"fedmq-{FEDERATION}-{name}" for name in names]
        extra = (lambda _topic, _payload: 0) if real else _Extra(self.federation, plan, self._settings).beside
        self._lines = Lines(world, draw_lines(plan.network, clients, rng), extra_bytes=extra)
        self.federation.broker.network = self._lines
        self._chance = np.random.default_rng([plan.seed, 2])
        self._asked_at = world.now
        self._before = (0, 0)

    def _make_learner(
        self, names: list[str], pace: Pace, rng: np.random.Generator
    ) -> CostLearner | TableLearner:
        plan = self._plan
        if plan.task == NO_TASK:
            return CostLearner(pace)
        train, held_out, classes = tables.load(plan.task, plan.seed)
        parts = tables.deal(train, names, examples=plan.examples, alpha=plan.alpha, classes=classes, rng=rng)
        return TableLearner(
            plan.task, parts, held_out, classes=classes, hidden=plan.hidden, pace=pace, seed=plan.seed
        )

    # ------------------------------------------------------------------------------ the run

    def run(self) -> None:
        """All of it."""
        federation, plan, figures = self.federation, self._plan, self.figures
        world, began_at = federation.world, federation.world.now
        federation.start()
        while world.now - began_at < _JOINING_S and not self._all_there():
            world.run(world.now + _STEP_S)
        figures.joined_s = world.now - began_at
        self._asked_at = world.now
        self._before = self._lines.up_bytes, self._lines.down_bytes
        at_first = {name: (line.up_bytes, line.down_bytes) for name, line in self._lines.lines.items()}
        initial = self._learner.initial if isinstance(self._learner, TableLearner) else None
        federation.request(self._settings, initial=initial)
        plan.dropout.begin(world, federation.devices.values(), self._chance)
        world.run(world.now + plan.most_s, done=federation.is_over)
        self._sum_up(at_first)

    def _all_there(self) -> bool:
        desk = self.federation.coordinator.core.state
        return sum(
            device.presence is not None and bool(device.presence.tasks) for device in desk.devices.values()
        ) == (self._plan.devices)

    def _sum_up(self, at_first: dict[str, tuple[int, int]]) -> None:
        figures, federation = self.figures, self.federation
        run = federation.run()
        figures.state = "not begun" if run is None else run.state
        figures.reason = "" if run is None else run.end_reason
        if run is not None and not run.over:
            coordinator = federation.coordinator
            figures.reason = f"waits for {coordinator.core.run_view(run.id, now=coordinator.now).waiting}"
        figures.virtual_s = federation.world.now - self._asked_at
        figures.steps = federation.world.steps
        figures.up_bytes, figures.down_bytes = self._bytes()
        moved = [
            (line.up_bytes - at_first[name][0], line.down_bytes - at_first[name][1])
            for name, line in self._lines.lines.items()
        ]
        figures.up_by_device = np.quantile([up for up, _ in moved], _QUANTILES).tolist()
        figures.down_by_device = np.quantile([down for _, down in moved], _QUANTILES).tolist()
        figures.utilisation = sum(self._busy_s.values()) / max(1e-9, self._plan.devices * figures.virtual_s)
        settled = figures.counted + sum(figures.refused.values())
        figures.in_flight = figures.trainings - figures.cut_short - settled

    def _bytes(self) -> tuple[int, int]:
        return self._lines.up_bytes - self._before[0], self._lines.down_bytes - self._before[1]

    # ------------------------------------------------------------------------------ what is seen

    def device_did(self, device: VirtualDevice, effect: Effect) -> None:
        """A training begins."""
        if isinstance(effect, Ask) and isinstance(effect.request, Train):
            self.figures.trainings += 1
            train_s = self._learner.train_s(device.name, effect.request)
            self._begun[device.name] = train_s
            self._plan.dropout.training_begins(self.federation.world, device, train_s, self._chance)

    def trained(self, device: VirtualDevice, request: Train, trained: Trained) -> None:  # noqa: ARG002
        """It came to something."""
        self._busy_s[device.name] = self._busy_s.get(device.name, 0.0) + self._begun.pop(device.name)

    def device_died(self, device: VirtualDevice, why: str) -> None:  # noqa: ARG002
        """A training under way came to nothing."""
        if self._begun.pop(device.name, None) is not None:
            self.figures.cut_short += 1

    def journaled(self, coordinator: VirtualCoordinator, facts: Sequence[f.Fact]) -> None:  # noqa: ARG002
        """What the coordinator decided."""
        figures = self.figures
        for fact in facts:
            match fact:
                case f.UpdateAccepted():
                    figures.counted += 1
                    figures.late += fact.staleness > 0
                    figures.staleness[fact.staleness] = figures.staleness.get(fact.staleness, 0) + 1
                case f.UpdateRejected():
                    figures.refused[fact.reason] = figures.refused.get(fact.reason, 0) + 1
                case f.LeaseReturned():
                    figures.returned[fact.why] = figures.returned.get(fact.why, 0) + 1
                case f.VersionPublished():
                    up, down = self._bytes()
                    at_s = self.federation.world.now - self._asked_at
                    figures.versions.append(VersionFigures(fact.version, at_s, up, down, figures.counted))
                    self._progress(figures)
                case f.Evaluated():
                    self._evaluated(fact)
                case _:
                    pass

    def _evaluated(self, fact: f.Evaluated) -> None:
        figures = self.figures
        place = fact.version - figures.versions[0].version
        accuracy = fact.metrics.get("accuracy")
        version = replace(figures.versions[place], accuracy=accuracy, loss=fact.loss)
        figures.versions[place] = version
        reached = figures.target is not None and accuracy is not None and accuracy >= figures.target
        if reached and figures.target_s is None:
            figures.target_s, figures.target_bytes = version.at_s, version.up_bytes + version.down_bytes


class _Extra:
    """What messages of a stand-in lack to the size of the model's that they stand for."""

    def __init__(self, federation: Federation, plan: Plan, settings: RunSettings) -> None:
        compression = settings.compression
        down = CodecSpec(compression.down, compression.down_density)
        up = CodecSpec(compression.up, compression.density, max_bytes=compression.update_bytes)
        self._whole = expected_sizes(plan.parameters, up=up, down=down, snapshot=compression.snapshot)
        self._topics, self._mail = Topics(FEDERATION), federation.mail
        self._known: tuple[bytes, int] = b"", 0

    def beside(self, topic: str, payload: bytes) -> int:
        """Beside the packet's own."""
        kind = topic.rpartition("/")[2]
        if kind == "update":
            return max(0, self._whole.update - self._length(topic, payload))
        if topic == self._topics.announcement:
            if payload is not self._known[0]:
                self._known = payload, max(0, self._whole.delta - self._length(topic, payload))
            return self._known[1]
        if kind == "s0":
            return max(0, self._whole.snapshot - len(payload))
        return 0

    def _length(self, topic: str, payload: bytes) -> int:
        body = self._mail.open(topic, payload).body
        if isinstance(body, Announcement):
            return self._whole.delta if body.inline_delta is None else len(body.inline_delta)
        return len(getattr(body, "data", b""))
