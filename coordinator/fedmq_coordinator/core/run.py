"""One run's state: a fold over its facts, and nothing else. Decisions stand in `rounds`, `leases` and `intake`."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.aggregation import Accumulator
from fedmq_coordinator.core.blobs import EMPTY
from fedmq_coordinator.core.dedupe import ACCEPTED, Outcome, SettledUpdates
from fedmq_coordinator.core.plain import Arrays
from fedmq_coordinator.core.publication import PublishedModel, StepsSince
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.traffic import Moved
from fedmq_protocol.codecs import DecodedUpdate, decode_update, versioned
from fedmq_protocol.codecs.seeded import NAME as SEEDED
from fedmq_protocol.limits import MAX_METRICS
from fedmq_protocol.messages import Cohort, Evaluation, UpdateHeader
from fedmq_protocol.sampling import in_cohort

RunState = Literal["queued", "active", "finished", "stopped"]

DURATIONS_KEPT: Final = 8
NORMS_KEPT: Final = 64
_VERSIONS_KEPT: Final = 1_024
NORMS_NEEDED: Final = 5
"""Before so many updates have been accepted, nothing is usual."""
ARRIVALS_KEPT: Final = 32
_LEASES_KEPT: Final = 64
_FLOAT32_BYTES: Final = 4


@dataclass(frozen=True)
class HeldLease:
    """A lease that a device has and has not answered."""

    lease: int
    version: int
    granted_at: float
    expires_at: float


@dataclass
class FederatedScore:
    """What devices measured of one version, added up and weighted by examples."""

    num_examples: int = 0
    loss_sum: float = 0.0
    metric_sums: dict[str, float] = field(default_factory=dict)

    def add(self, evaluation: Evaluation) -> None:
        """Count one device's evaluation."""
        self.num_examples += evaluation.num_examples
        self.loss_sum += evaluation.loss * evaluation.num_examples
        for name, value in evaluation.metrics.items():
            if name in self.metric_sums or len(self.metric_sums) < MAX_METRICS:
                self.metric_sums[name] = self.metric_sums.get(name, 0.0) + value * evaluation.num_examples

    @property
    def loss(self) -> float:
        return self.loss_sum / max(1, self.num_examples)

    @property
    def metrics(self) -> dict[str, float]:
        return {name: total / max(1, self.num_examples) for name, total in sorted(self.metric_sums.items())}


@dataclass(frozen=True)
class Rule:
    """A cohort that was announced as a sampling rule; a device that the coordinator did not know of may use it."""

    cohort: Cohort
    round: int
    at: float
    used: set[str]


@dataclass
class FactNumbers:
    """By which numbers in the journal the facts are found that a checkpoint of the run refers to."""

    created: int = 0
    chain: list[int] = field(default_factory=list)
    """Of the versions since the newest snapshot, that one first."""
    steps: int = 0
    """How many steps that snapshot holds."""

    def published(self, number: int, *, snapshot: bool) -> None:
        if snapshot:
            self.chain.clear()
        self.chain.append(number)


@dataclass(frozen=True)
class CentralScore:
    """What the central evaluation of a version found."""

    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Frozen:
    """The history of a closed run as a checkpoint holds it, which costs no time and little memory.

    Attributes:
        packed: the bytes.
        thaw: makes the run's attributes of them.
    """

    packed: bytes
    thaw: Callable[[Run, bytes], None]


class Run:
    """A run, queued, active or over.

    Args:
        created: the fact that made it.
        skip_steps: so many steps need not be computed while replaying, since a snapshot follows; see `replay`.
    """

    decoded: tuple[bytes, DecodedUpdate] | None = None
    """The payload that was judged last, and what it decodes to: it need not be decoded again to be counted."""

    def __init__(self, created: f.RunCreated, *, skip_steps: int = 0) -> None:
        self.id = created.run
        self.settings = created.settings
        self.task = created.task
        self.schema = created.tensor_schema
        self.has_central_data = created.has_central_data
        self.created_at = created.at
        self.state: RunState = "queued"
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.end_reason = ""
        self.best_version: int | None = None
        self._skip_steps = skip_steps
        self.num_steps = 0
        self.frozen: Frozen | None = None
        self.numbers = FactNumbers()
        self._initial, self.recipe, self.why_no_recipe = (
            created.initial,
            created.recipe,
            created.why_no_recipe,
        )
        self._model: PublishedModel | None = None
        self._last_version = -1
        self._accumulator: Accumulator | None = None

        self.round = 0
        self.round_open = False
        self.opened_at = 0.0
        self.goal = 0
        self.lease = 0
        self.cohort = Cohort(devices=[])
        self.cohort_lease = 0
        self.cohort_granted_at = 0.0
        self.lease_expires_at = 0.0
        self.members: set[str] = set()
        self.answered: set[str] = set()

        self.leases: dict[str, HeldLease] = {}
        self._unused: dict[str, OrderedDict[int, float]] = {}
        self._rules: OrderedDict[int, Rule] = OrderedDict()
        self.last_lease_version: dict[str, int] = {}
        self.settled: dict[str, SettledUpdates] = {}
        self.durations: dict[str, deque[float]] = {}
        self.norms: deque[float] = deque(maxlen=NORMS_KEPT)
        self.usual_norms: dict[int, float] = {}
        """The running median of the norms when a version was published; absent while too few are known."""
        self.examples: deque[int] = deque(maxlen=NORMS_KEPT)
        self.arrivals: deque[float] = deque(maxlen=ARRIVALS_KEPT)
        self.dirty = False
        """Steps were taken since the last publication."""
        self.published_at = 0.0
        self.evaluations: dict[int, CentralScore] = {}
        self.federated: dict[int, FederatedScore] = {}
        self.updates_by_device: dict[str, int] = {}
        self.moved = Moved()
        """What devices have told of their sockets while this run was the one under way."""
        self.num_accepted = self.num_rejected = 0

    @property
    def model(self) -> PublishedModel:
        """The run's model; made when it is first asked for, gone once the run is over."""
        if self._model is None:
            compression = self.settings.compression
            self._model = PublishedModel(self.schema, compression, self._initial, self.recipe)
        return self._model

    @property
    def accumulator(self) -> Accumulator:
        if self._accumulator is None:
            self._accumulator = Accumulator(self.schema)
        return self._accumulator

    @property
    def version(self) -> int:
        """The newest published version; -1 before the first."""
        return self._last_version if self._model is None else self._model.version

    @property
    def expected_settings(self) -> RunSettings:
        """The settings with the density that updates will have, where a budget of bytes decides it."""
        compression = self.settings.compression
        if compression.update_bytes is None:
            return self.settings
        density = compression.expected_density(self.schema.num_parameters)
        updated = compression.model_copy(update={"density": density})
        return self.settings.model_copy(update={"compression": updated})

    @property
    def needed_codecs(self) -> tuple[str, ...]:
        """What a device must speak to take part, with versions."""
        needed = self.settings.compression.needed_codecs
        return needed if self.recipe is None else (*needed, versioned(SEEDED))

    @property
    def holds_model(self) -> bool:
        """Whether a published model is at hand."""
        return self._model is not None and self._model.version >= 0

    def release_model(self) -> None:
        """Forget the weights of a run that is over: memory follows one model. The journal can rebuild them."""
        if self.over and self._model is not None:
            self._last_version, self._model = self._model.version, None
            for past in (self.numbers.chain, self.norms, self.examples, self.arrivals):
                past.clear()
            for each in (self.last_lease_version, self.durations, self.usual_norms):
                each.clear()

    @property
    def closed(self) -> bool:
        """Whether nothing will change this run any more: it is over, and its model and receipts are forgotten."""
        return self.frozen is not None or (self.over and self._model is None and not self.settled)

    if not TYPE_CHECKING:  # else any name would do

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the attribute is
            """What is asked for the first time of a closed run out of a checkpoint."""
            frozen = self.__dict__.get("frozen")
            if frozen is not None and not name.startswith("__") and "moved" not in self.__dict__:
                frozen.thaw(self, frozen.packed)
                if name in self.__dict__:
                    return self.__dict__[name]
            raise AttributeError(name)

    def _unfreeze(self) -> None:
        frozen, missing = self.frozen, "moved" not in self.__dict__
        self.frozen = None
        if frozen is not None and missing:
            frozen.thaw(self, frozen.packed)

    def forget_settled(self) -> None:
        """Give no more receipts for what was settled: the run has been over for long."""
        self.settled.clear()

    def outcome_of(self, device: str, header: UpdateHeader) -> Outcome | None:
        """The outcome of an update that is settled already; None: it is not."""
        settled = self.settled.get(device)
        return None if settled is None else settled.find(header.counter, header.payload.sha256)

    @property
    def awaits_publication(self) -> bool:
        """A synchronous round's step has been taken, and its version has not been published yet."""
        return self.settings.mode == "sync" and self.dirty and not self.round_open

    @property
    def over(self) -> bool:
        return self.state in {"finished", "stopped"}

    @property
    def rounds_done(self) -> bool:
        """Every round that the settings ask for is over."""
        if self.settings.mode == "sync":
            return not self.round_open and self.round >= self.settings.rounds and not self.dirty
        return self.version >= self.settings.rounds

    def skip_leases(self, number: int) -> None:
        """Devices may hold higher leases than this run has given, and listen to higher ones only."""
        self.lease += number

    def was_granted(self, device: str, lease: int) -> float | None:
        """When `device` was given `lease`, if it was and has not used it yet."""
        granted_at = self._unused.get(device, OrderedDict()).get(lease)
        if granted_at is not None:
            return granted_at
        rule = self._rules.get(lease)
        if rule is None or device in rule.used or not in_cohort(rule.cohort, rule.round, device):
            return None
        return rule.at

    def task_time(self, device: str) -> float | None:
        """The median of what the device's last tasks took, from lease to arrival, in seconds."""
        durations = self.durations.get(device)
        return median(durations) if durations else None

    @property
    def _steps_since_snapshot(self) -> StepsSince:
        if self.over:
            return "over"
        return "none" if self.num_steps == self.numbers.steps else "some"

    @property
    def array_bytes(self) -> int:
        """What `plain_model` would write beside the plain values."""
        weights = _FLOAT32_BYTES * self.schema.size if self._steps_since_snapshot == "some" else 0
        buffer = self._accumulator
        return weights + (buffer.nbytes if buffer is not None and buffer.num_updates else 0)

    def plain_model(self, arrays: Arrays) -> dict[str, object]:
        """Model and accumulator as values for msgpack, their arrays beside them."""
        model, buffer = self._model, self._accumulator
        return {
            "model": model.plain(arrays, steps=self._steps_since_snapshot)
            if model is not None and self.holds_model
            else None,
            "buffer": buffer.plain(arrays) if buffer is not None and buffer.num_updates else None,
        }

    def restore_model(
        self, plain: Mapping[str, Any], arrays: Arrays, chain: Sequence[f.VersionPublished]
    ) -> None:
        """Take over what `plain_model` wrote, once everything else has been.

        Args:
            plain: what it wrote.
            arrays: what it wrote beside it.
            chain: the facts of `numbers.chain`.

        Raises:
            StoreError: weights that it stands on are not in the journal any more.
        """
        if plain["model"] is not None:
            self.model.restore(chain, plain["model"], arrays, with_model=self._computing)
        if plain["buffer"] is not None:
            self._accumulator = Accumulator.from_plain(self.schema, plain["buffer"], arrays)
        if self.over:
            self._initial = EMPTY

    @property
    def _computing(self) -> bool:
        return self.num_steps >= self._skip_steps

    def apply(self, fact: f.Fact) -> None:
        """Make a fact so."""
        if self.frozen is not None:
            self._unfreeze()
        match fact:
            case f.RunActivated():
                self.state, self.started_at = "active", fact.at
            case f.VersionPublished():
                self.model.apply(fact, with_model=self._computing)
                self.published_at, self.dirty = fact.at, False
                if fact.snapshot is not None:
                    self.numbers.steps = self.num_steps
                self._remember_norm(fact.version)
            case f.RoundOpened():
                self._open_round(fact)
            case f.LeaseGranted():
                self.lease = fact.lease
                self._grant(fact.device, HeldLease(fact.lease, fact.version, fact.at, fact.lease_expires_at))
            case f.LeaseReturned():
                self._end_lease(fact.device, fact.lease)
                self.last_lease_version.pop(fact.device, None)
            case f.UpdateAccepted():
                self._accept(fact)
            case f.UpdateRejected():
                self.num_rejected, self.decoded = self.num_rejected + 1, None
                self.last_lease_version.pop(fact.device, None)
                outcome = Outcome("rejected", fact.residual, fact.reason, fact.detail)
                self._settle(fact.device, fact.counter, fact.lease, outcome, fact.digest)
            case f.StepTaken():
                self._step(fact)
            case f.Evaluated():
                self.evaluations[fact.version] = CentralScore(fact.loss, fact.metrics)
            case f.RunEnded():
                self.state, self.ended_at, self.end_reason = fact.state, fact.at, fact.reason
                self.best_version, self.round_open = fact.best_version, False
                self.leases.clear()
                self._unused.clear()
                self._rules.clear()
                self._accumulator, self._initial = None, EMPTY
            case _:
                msg = f"{type(fact).__name__} is not a fact about a run"
                raise AssertionError(msg)

    def _remember_norm(self, version: int) -> None:
        if len(self.norms) >= NORMS_NEEDED:
            self.usual_norms[version] = median(self.norms)
        self.usual_norms.pop(version - _VERSIONS_KEPT, None)

    def _open_round(self, fact: f.RoundOpened) -> None:
        if fact.round != self.round or not self.round_open:
            self.members, self.answered, self.opened_at = set(), set(), fact.at
        self.round, self.round_open, self.goal = fact.round, True, fact.goal
        self.lease = self.cohort_lease = fact.lease
        self.cohort_granted_at, self.lease_expires_at = fact.at, fact.lease_expires_at
        if fact.rate is None:
            self.cohort = Cohort(devices=fact.devices)
        else:
            self.cohort = Cohort(rate=fact.rate, seed=fact.sampling_seed)
            self._rules[fact.lease] = Rule(self.cohort, fact.round, fact.at, set(fact.devices))
            while len(self._rules) > _LEASES_KEPT:
                self._rules.popitem(last=False)
        self.members.update(fact.devices)
        for device in fact.devices:
            self._grant(device, HeldLease(fact.lease, fact.version, fact.at, fact.lease_expires_at))

    def _grant(self, device: str, lease: HeldLease) -> None:
        self.leases[device] = lease
        self.last_lease_version[device] = lease.version
        unused = self._unused.setdefault(device, OrderedDict())
        unused[lease.lease] = lease.granted_at
        while len(unused) > _LEASES_KEPT:
            unused.popitem(last=False)

    def _end_lease(self, device: str, lease: int) -> None:
        held = self.leases.get(device)
        if held is not None and held.lease <= lease:
            del self.leases[device]

    def _settle(self, device: str, counter: int, lease: int, outcome: Outcome, digest: bytes = b"") -> None:
        self.settled.setdefault(device, SettledUpdates()).settle(counter, outcome, digest)
        self._unused.get(device, OrderedDict()).pop(lease, None)
        if lease in self._rules:
            self._rules[lease].used.add(device)
        self._end_lease(device, lease)
        if lease == self.cohort_lease or device in self.members:
            self.answered.add(device)

    def _accept(self, fact: f.UpdateAccepted) -> None:
        self._settle(fact.device, fact.counter, fact.lease, ACCEPTED, fact.digest)
        if fact.payload is None or not self._computing:
            self.accumulator.count(weight=fact.weight)
        else:
            payload, update = self.decoded or (b"", None)
            if update is None or payload is not fact.payload:
                update = decode_update(fact.payload, self.schema)
            self.accumulator.fold(update, weight=fact.weight, clip=fact.clip)
        self.decoded = None
        self.num_accepted += 1
        self.updates_by_device[fact.device] = self.updates_by_device.get(fact.device, 0) + 1
        self.norms.append(fact.norm)
        self.examples.append(fact.num_examples)
        self.arrivals.append(fact.at)
        if fact.duration_s is not None:
            self.durations.setdefault(fact.device, deque(maxlen=DURATIONS_KEPT)).append(fact.duration_s)
        self.judge(fact)

    def judge(self, fact: f.UpdateAccepted) -> None:
        """Count what the sender of an update measured."""
        if fact.evaluation is not None:
            self.federated.setdefault(fact.evaluation.version, FederatedScore()).add(fact.evaluation)

    def _step(self, fact: f.StepTaken) -> None:
        if self._computing:
            self.model.step(self.accumulator, fact.scale)
        self._accumulator = None
        self.num_steps += 1
        self.dirty = True
        if self.settings.mode == "sync":
            self.round_open = False
