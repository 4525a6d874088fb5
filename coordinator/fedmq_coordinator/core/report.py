"""A run's report, out of the journal: a fold of its facts that needs no model and no payload.

A row is what happened between two publications: in synchronous runs that is a round, in asynchronous ones the steps of
one `publish_interval_s`. Row v ends with version v, so its accuracy is that version's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel

from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.traffic import Meter, Moved
from fedmq_protocol.messages import Evaluation, TaskRef

_FLOAT32_BYTES = 4


class RoundReport(BaseModel):
    """One row. Times are seconds since the epoch."""

    round: int
    version: int
    opened_at: float
    """When its first lease was given; in asynchronous runs, from the second row on, when the version before came."""
    closed_at: float
    seconds: float
    accuracy: float | None = None
    """Of `version`, on the coordinator's held-out data."""
    loss: float | None = None
    metrics: dict[str, float] = {}
    federated_accuracy: float | None = None
    """Of `version`, on the devices' own test data, weighted by their numbers of examples."""
    federated_loss: float | None = None
    bytes_up: int = 0
    """All that the agents sent on their sockets, as far as they have told: an agent tells with its next update."""
    bytes_down: int = 0
    moved: dict[str, tuple[int, int]] = {}
    """Device -> its part of these: sent, received."""
    participants: list[str] = []
    """Devices whose updates came in this row, late ones of earlier rows among them."""
    leases: int = 0
    """Leases given in this row."""
    on_time: int = 0
    """Updates that came in this row under a lease of this row."""
    participation: float | None = None
    """on_time / leases."""
    goal: int = 0
    steps: int = 0
    closed_by: str = ""


class UpdateReport(BaseModel):
    """One update that counted."""

    device: str
    start: float
    """When its lease was given; when training began, as far as is known, if the lease is not."""
    end: float
    """When it was accepted."""
    staleness: int
    round: int
    """The row in which it came."""
    weight: float
    num_examples: int
    train_s: float


class Totals(BaseModel):
    """A run as a whole."""

    seconds: float = 0.0
    """From the first lease to the last version."""
    bytes_up: int = 0
    bytes_down: int = 0
    moved: dict[str, tuple[int, int]] = {}
    """Device -> its part of these: sent, received."""
    float32_bytes_up: int = 0
    """What the accepted updates would have taken as float32."""
    float32_bytes_down: int = 0
    """What a model for each lease would have taken as float32."""
    compression_ratio: float | None = None
    """float32 both ways over measured bytes both ways."""
    leases: int = 0
    updates_accepted: int = 0
    updates_used: int = 0
    """Accepted, and part of a step."""
    participation_rate: float | None = None
    """updates_used / leases."""
    staleness: dict[int, int] = {}
    """How many accepted updates had which staleness."""
    rejected: dict[str, int] = {}
    """How many updates were refused, by reason."""
    leases_returned: dict[str, int] = {}
    """How many leases ended without an update, by reason."""


class RunReport(BaseModel):
    """Everything that a report on a run needs."""

    run: str
    task: TaskRef
    settings: RunSettings
    state: str
    reason: str = ""
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    num_parameters: int
    size: int
    """Elements of the whole model: parameters, frozen tensors and floating buffers."""
    best_version: int | None = None
    initial_accuracy: float | None = None
    """Of version 0."""
    initial_loss: float | None = None
    rounds: list[RoundReport] = []
    updates: list[UpdateReport] = []
    totals: Totals = Totals()


def make_report(run: str, facts: Iterable[f.Fact]) -> RunReport:
    """Report on a run.

    Args:
        run: its name.
        facts: all of the journal in its order, other runs' too: they say where the devices' byte counters stood.

    Raises:
        KeyError: there is no such run.
    """
    fold = _Fold(run)
    for fact in facts:
        fold.apply(fact)
    return fold.report()


@dataclass
class _Row:
    opened_at: float
    leases: set[tuple[str, int]] = field(default_factory=set)
    updates: list[f.UpdateAccepted] = field(default_factory=list)
    goal: int = 0
    steps: list[f.StepTaken] = field(default_factory=list)
    published: f.VersionPublished | None = None
    moved: Moved = field(default_factory=Moved)


class _Fold:
    def __init__(self, run: str) -> None:
        self._run = run
        self._created: f.RunCreated | None = None
        self._activated: f.RunActivated | None = None
        self._ended: f.RunEnded | None = None
        self._another_began = False
        self._rows: list[_Row] = []
        self._leases: dict[tuple[str, int], float] = {}
        self._first_lease: float | None = None
        self._rejected: Counter[str] = Counter()
        self._returned: Counter[str] = Counter()
        self._central: dict[int, f.Evaluated] = {}
        self._federated: dict[int, list[Evaluation]] = {}
        self._meter = Meter()
        self._seen_in: dict[str, _Row] = {}

    def apply(self, fact: f.Fact) -> None:
        match fact:
            case f.UpdateAccepted(device=device, traffic=(sent, received)):
                self._count(device, sent, received)
            case f.TrafficSeen(device=device, sent=sent, received=received):
                self._count(device, sent, received)
            case f.RunActivated() if fact.run != self._run and self._activated is not None:
                self._another_began = True
            case _:
                pass
        if getattr(fact, "run", None) == self._run:
            self._apply_own(fact)

    def _apply_own(self, fact: f.Fact) -> None:  # one arm a fact
        match fact:
            case f.RunCreated():
                self._created = fact
            case f.RunActivated():
                self._activated = fact
            case f.VersionPublished():
                if self._rows:
                    self._rows[-1].published = fact
                self._rows.append(_Row(fact.at))
            case f.RoundOpened():
                self._rows[-1].goal = max(self._rows[-1].goal, fact.goal)
                self._grant([(device, fact.lease) for device in fact.devices], fact.at)
            case f.LeaseGranted():
                self._grant([(fact.device, fact.lease)], fact.at)
            case f.LeaseReturned():
                self._returned[fact.why] += 1
            case f.UpdateAccepted():
                self._rows[-1].updates.append(fact)
                if fact.evaluation is not None:
                    self._federated.setdefault(fact.evaluation.version, []).append(fact.evaluation)
            case f.UpdateRejected():
                self._rejected[fact.reason] += 1
            case f.StepTaken():
                self._rows[-1].steps.append(fact)
            case f.Evaluated():
                self._central[fact.version] = fact
            case f.RunEnded():
                self._ended = fact
            case _:
                pass

    def _grant(self, leases: list[tuple[str, int]], at: float) -> None:
        row = self._rows[-1]
        assert self._created is not None  # the core makes a run before it gives leases
        if self._first_lease is None:
            self._first_lease = at
        if not row.leases and (self._created.settings.mode == "sync" or self._first_lease == at):
            row.opened_at = at
        row.leases.update(leases)
        self._leases.update(dict.fromkeys(leases, at))

    def _count(self, device: str, sent: int, received: int) -> None:
        """Add what a device's counters grew by; a smaller value than before is a restarted agent's.

        What was sent since the agent's last word belongs to the row of that word: its update left after it was written.
        """
        restarted = self._meter.restarted(device, sent, received)
        grown_sent, grown_received = self._meter.grown(device, sent, received)
        if (
            self._activated is None
            or self._another_began
            or (self._ended is not None and restarted)
            or not self._rows
        ):
            return
        row = self._rows[-1]
        self._seen_in.get(device, row).moved.add(device, grown_sent, 0)
        row.moved.add(device, 0, grown_received)
        self._seen_in[device] = row

    def report(self) -> RunReport:
        created = self._created
        if created is None:
            raise KeyError(self._run)
        if (
            len(self._rows) > 1
        ):  # the row after the last version: its bytes belong to that version's way to the devices
            self._rows[-2].moved.take(self._rows[-1].moved)
        ended = self._ended
        initial = self._central.get(0)
        return RunReport(
            run=self._run,
            task=created.task,
            settings=created.settings,
            state="queued" if self._activated is None else "active" if ended is None else ended.state,
            reason="" if ended is None else ended.reason,
            created_at=created.at,
            started_at=None if self._activated is None else self._activated.at,
            ended_at=None if ended is None else ended.at,
            num_parameters=created.tensor_schema.num_parameters,
            size=created.tensor_schema.size,
            best_version=None if ended is None else ended.best_version,
            initial_accuracy=None if initial is None else initial.metrics.get("accuracy"),
            initial_loss=None if initial is None else initial.loss,
            rounds=[self._row_report(row, row.published) for row in self._rows if row.published is not None],
            updates=[
                self._update_report(update, number)
                for number, row in enumerate(self._rows, 1)
                for update in row.updates
            ],
            totals=self._totals(created),
        )

    def _row_report(self, row: _Row, published: f.VersionPublished) -> RoundReport:
        central = self._central.get(published.version)
        federated_accuracy, federated_loss = _weighted(self._federated.get(published.version, []))
        on_time = sum((update.device, update.lease) in row.leases for update in row.updates)
        return RoundReport(
            round=published.version,
            version=published.version,
            opened_at=row.opened_at,
            closed_at=published.at,
            seconds=published.at - row.opened_at,
            accuracy=None if central is None else central.metrics.get("accuracy"),
            loss=None if central is None else central.loss,
            metrics={} if central is None else central.metrics,
            federated_accuracy=federated_accuracy,
            federated_loss=federated_loss,
            bytes_up=row.moved.sent,
            bytes_down=row.moved.received,
            moved=row.moved.by_device,
            participants=sorted({update.device for update in row.updates}),
            leases=len(row.leases),
            on_time=on_time,
            participation=on_time / len(row.leases) if row.leases else None,
            goal=row.goal,
            steps=len(row.steps),
            closed_by=row.steps[-1].closed_by if row.steps else "",
        )

    def _update_report(self, update: f.UpdateAccepted, row: int) -> UpdateReport:
        took = update.train_s if update.duration_s is None else update.duration_s
        return UpdateReport(
            device=update.device,
            start=self._leases.get((update.device, update.lease), update.at - took),
            end=update.at,
            staleness=update.staleness,
            round=row,
            weight=update.weight,
            num_examples=update.num_examples,
            train_s=update.train_s,
        )

    def _totals(self, created: f.RunCreated) -> Totals:
        updates = [update for row in self._rows for update in row.updates]
        used = sum(step.num_updates for row in self._rows for step in row.steps)
        # The last row has given its bytes to the one before it, if there is one.
        counted = self._rows[:-1] if len(self._rows) > 1 else self._rows
        moved = Moved()
        for row in counted:
            moved.take(row.moved)
        up, down = moved.sent, moved.received
        model_bytes = _FLOAT32_BYTES * created.tensor_schema.size
        plain_up, plain_down = model_bytes * len(updates), model_bytes * len(self._leases)
        last = next((row.published.at for row in reversed(self._rows) if row.published is not None), None)
        return Totals(
            seconds=0.0 if last is None or self._first_lease is None else last - self._first_lease,
            bytes_up=up,
            bytes_down=down,
            moved=moved.by_device,
            float32_bytes_up=plain_up,
            float32_bytes_down=plain_down,
            compression_ratio=(plain_up + plain_down) / (up + down) if up + down else None,
            leases=len(self._leases),
            updates_accepted=len(updates),
            updates_used=used,
            participation_rate=used / len(self._leases) if self._leases else None,
            staleness=dict(sorted(Counter(update.staleness for update in updates).items())),
            rejected=dict(self._rejected.most_common()),
            leases_returned=dict(self._returned.most_common()),
        )


def _weighted(evaluations: list[Evaluation]) -> tuple[float | None, float | None]:
    """Accuracy and loss, weighted by examples; None where nobody measured."""

    def mean(pairs: list[tuple[float, int]]) -> float | None:
        total = sum(weight for _, weight in pairs)
        return sum(value * weight for value, weight in pairs) / total if total else None

    accuracies = [(e.metrics["accuracy"], e.num_examples) for e in evaluations if "accuracy" in e.metrics]
    return mean(accuracies), mean([(e.loss, e.num_examples) for e in evaluations])
