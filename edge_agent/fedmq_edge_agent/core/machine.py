"""The device: follows the announced run, holds its newest version, trains when a lease says so, delivers the update.

    connected ─ announcement ─> pull what lacks ─> trainer holds the newest version ─ lease ─> train
                                                                                                 │
    residual, outbox <── receipt <── send, and send again <── commit (the only point of no return) ┘

Everything that waits has a deadline here and a sentence in `words`. `handle` first takes in what happened, then
`_advance` does whatever has become possible or due; the latter is idempotent, so that no event can leave something
undone. Before the commit of an update nothing happened; after it the update is sent until a receipt comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, assert_never

from fedmq_edge_agent.core import words
from fedmq_edge_agent.core.backoff import Chance
from fedmq_edge_agent.core.contact import Contact
from fedmq_edge_agent.core.effects import (
    Effect,
    Note,
    PinCoordinator,
    RemoveFiles,
    Request,
    Restore,
    Send,
    Train,
)
from fedmq_edge_agent.core.events import (
    AgentStarted,
    Answer,
    BlobFinished,
    Connected,
    Disconnected,
    Event,
    ModelLoaded,
    PacketArrived,
    ResidualRestored,
    TaskOpened,
    TimePassed,
    TrainerAnswered,
    TrainerDied,
    TrainerRefused,
    TrainerStarted,
    TrainingFinished,
)
from fedmq_edge_agent.core.following import Following
from fedmq_edge_agent.core.inbox import Heard, Inbox, KeyUnknownError, StaleError
from fedmq_edge_agent.core.leases import HeldLease, Leases
from fedmq_edge_agent.core.ledger import Ledger
from fedmq_edge_agent.core.outbox import Outbox
from fedmq_edge_agent.core.state import AgentState, ModelIndex
from fedmq_edge_agent.core.supervision import Supervision, TimeLimits
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_TEXT_CHARS
from fedmq_protocol.messages import (
    Announcement,
    Body,
    Credit,
    Hello,
    Lease,
    ModelChunk,
    Notice,
    Presence,
    Receipt,
    Report,
    Status,
)
from fedmq_protocol.sampling import in_cohort
from fedmq_protocol.topics import Topics

PATIENCE_S = 2.0
"""How long a leased training waits for a newer version that is still on its way."""

ReportCode = Literal[
    "train-failed",
    "task-mismatch",
    "no-data",
    "task-error",
    "model-unreachable",
    "busy",
    "bad-message",
    "other",
]


@dataclass(frozen=True)
class AgentLimits:
    """What the core is told of its device.

    Attributes:
        federation: which one.
        device: this device's id.
        outbox_limit: with so many updates without a receipt, no further training.
        agent_version: for the birth certificate.
        times: how long the trainer child may take.
    """

    federation: str
    device: str
    outbox_limit: int = 4
    agent_version: str = "0"
    times: TimeLimits = field(default_factory=TimeLimits)


class Agent:
    """The device's state machine.

    Args:
        limits: what it is told of its device.
        public_key: the device's, for the birth certificate.
        coordinator_key: the coordinator's, if configured or pinned before.
        state: what the last commit left.
        indexes: the model files on disk, by run.
        chance: fractions in [0, 1), for jitter.
    """

    def __init__(
        self,
        limits: AgentLimits,
        *,
        public_key: bytes,
        coordinator_key: bytes | None,
        state: AgentState,
        indexes: Mapping[str, ModelIndex],
        chance: Chance,
    ) -> None:
        device = limits.device
        self.limits = limits
        self.topics = Topics(limits.federation)
        self.ledger = Ledger(state)
        self.contact = Contact(chance=chance)
        self.inbox = Inbox(
            topics=self.topics, device=device, coordinator_key=coordinator_key, epoch=state.epoch
        )
        self.outbox = Outbox(topics=self.topics, device=device, chance=chance)
        self.trainer = Supervision(limits=limits.times, chance=chance)
        self.leases = Leases()
        self.following: Following | None = None
        """The run whose model is held; None: there is none."""
        self.announcement: Announcement | None = None
        """The newest, whatever it is about."""
        self.rejected: Counter[tuple[str, str]] = Counter()
        """Packets that were not believed, by kind of topic and reason."""
        self.idle_reason = ""
        """Why the announced run is not followed."""
        self._public_key = public_key
        self._chance = chance
        self._indexes = dict(indexes)
        self._effects: list[Effect] = []
        self._unverified: dict[str, bytes] = {}
        self._announced_at = 0.0
        self._task_problem = ""
        self._mismatch_told = ""
        self._ended = ""  # the run that was last said to be over

    # ------------------------------------------------------------------------------ what the shell calls

    def next_session(self) -> int:
        """The session number for a connection that is about to be made."""
        return self.ledger.next_session()

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take in what happened; return what to do, in order."""
        self._effects = []
        self._take_in(event, now=now)
        self._advance(now=now)
        return self._effects

    def last_effects(self) -> list[Effect]:
        """What is to be done before an orderly end: the commit that was due anyway."""
        return [] if self.ledger.commit_at is None else self.ledger.commit()

    def next_deadline(self) -> float | None:
        """When `TimePassed` is due, if nothing happens before."""
        deadlines = [
            self.trainer.next_deadline(),
            self.outbox.next_deadline(),
            None if self.following is None else self.following.pull.next_deadline(),
            self.contact.next_deadline(),
            self.ledger.commit_at,
            None if self.leases.held is None else self.leases.held.expires_at,
            self.train_at(),
        ]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def waiting(self, *, now: float) -> str:
        """What this device waits for, since when and until when, in one line."""
        return words.waiting(self, now=now)

    def presence(self, *, online: bool, session: int) -> Presence:
        """The birth certificate as it stands now; or a goodbye, or the last will, of `session`."""
        if not online:
            return Presence(online=False, session=session, public_key=self._public_key)
        opened = self.trainer.opened
        return Presence(
            online=True,
            session=session,
            public_key=self._public_key,
            agent_version=self.limits.agent_version,
            tasks=[] if opened is None else [opened.task],
            codecs=[] if opened is None else list(opened.codecs),
            num_examples=None if opened is None else opened.num_examples,
            problem=self.problem,
        )

    @property
    def problem(self) -> str:
        """Why this device cannot train now, for the operator; empty when it can."""
        if self._task_problem:
            return self._task_problem
        if self.trainer.unfit:
            text = f"the trainer failed {self.trainer.failures} times in a row, last: {self.trainer.last_failure}"
            return text[:MAX_TEXT_CHARS]
        return "" if self.trainer.opened is not None else "the task is being opened"

    # ------------------------------------------------------------------------------ events

    def _take_in(self, event: Event, *, now: float) -> None:
        match event:
            case AgentStarted():
                self._on_started(now=now)
            case Connected():
                self._on_connected(event, now=now)
            case Disconnected():
                self._on_disconnected(event, now=now)
            case PacketArrived():
                self._on_packet(event.topic, event.payload, now=now)
            case BlobFinished():
                if self.following is not None and self.following.run == event.run:
                    self._effects += self.following.blob(event, now=now)
            case TrainerStarted() | TrainerAnswered() | TrainerDied():
                if event.generation == self.trainer.generation:
                    self._on_trainer(event, now=now)
            case TimePassed():
                pass
            case _:
                assert_never(event)

    def _advance(self, *, now: float) -> None:
        """Do whatever has become possible or due. The commit comes first: what is sent below relies on it."""
        request = self.trainer.request
        busy = request.run if isinstance(request, Train | Restore) else None
        for run in self.ledger.sweep(busy=busy, now=now):
            self._indexes.pop(run, None)
        if self.ledger.commit_at is not None and self.ledger.commit_at <= now:
            self._effects += self.ledger.commit()
        if self.trainer.hung(now=now):
            took_s = now - self.trainer.since
            request, effects = self.trainer.stop(f"it hung, and was ended after {took_s:.0f} s", now=now)
            self._effects += effects
            self._trainer_gone(request)
        self._effects += self.trainer.start(now=now)
        if self.following is not None:
            self._effects += self.following.poll(now=now)
            trouble = self.following.take_trouble()
            if trouble:
                self._note("warning", f"cannot get the model: {trouble}", run=self.following.run)
                self._report("model-unreachable", trouble, run=self.following.run)
        self._advance_lease(now=now)
        self._ask_trainer(now=now)
        if self.following is not None:
            self._effects += self.following.flush()
        self._effects += self.outbox.poll(now=now)
        self._say_hello(now=now)
        self._greet()

    # ------------------------------------------------------------------------------ connection

    def _on_started(self, *, now: float) -> None:
        self.contact.since = now
        self.ledger.reserve_sessions(now=now)
        for run in self.ledger.state.runs.values():
            for pending in run.pending:
                self.outbox.add(pending, now=now)

    def _on_connected(self, event: Connected, *, now: float) -> None:
        self.contact.connected(event.session, now=now)
        self.ledger.reserve_sessions(now=now)
        self._greet()
        self.outbox.connected(event.max_packet_bytes, now=now)
        if self.following is not None:
            self.following.pull.connected()

    def _on_disconnected(self, event: Disconnected, *, now: float) -> None:
        self.contact.disconnected(event.reason, now=now)
        self.outbox.disconnected()
        if self.following is not None:
            self._effects += self.following.pull.disconnected()

    def _greet(self) -> None:
        """Publish the birth certificate, again when something in it changes."""
        session = self.contact.session
        if session is None:
            return
        presence = self.presence(online=True, session=session)
        if self.contact.changed(presence):
            self._effects.append(Send(self.topics.presence(self.limits.device), presence, retain=True))

    def _say_hello(self, *, now: float) -> None:
        if self.contact.hello_is_due(now=now):
            run = None if self.following is None else self.following.run
            version = None if self.following is None else self.following.replica.held
            hello = Hello(run=run, version=version)
            self._effects.append(Send(self.topics.up(self.limits.device, "hello"), hello))

    # ------------------------------------------------------------------------------ packets

    def _on_packet(self, topic: str, payload: bytes, *, now: float) -> None:
        knew_key = self.inbox.coordinator_key is not None
        try:
            heard = self.inbox.open(topic, payload)
            if not knew_key and self.inbox.coordinator_key is not None:
                key = self.inbox.coordinator_key
                self._effects.append(PinCoordinator(key))
                self._note(
                    "info", f"believes the coordinator with the key {key.hex()}, and no other from now on"
                )
            if not isinstance(heard.body, ModelChunk) and heard.epoch > self.ledger.state.epoch:
                self._new_epoch(heard.epoch, now=now)
            self._on_message(heard, now=now)
        except KeyUnknownError:
            # Retained messages come in any order; the newest on each topic is heard once the key is known.
            if topic in {self.topics.announcement, self.topics.down(self.limits.device, "announcement")}:
                self._unverified[topic] = payload
        except RemoteError as error:
            self._reject(topic, error)
        if not knew_key and self.inbox.coordinator_key is not None:
            earlier, self._unverified = self._unverified, {}
            for earlier_topic, earlier_payload in earlier.items():
                self._on_packet(earlier_topic, earlier_payload, now=now)

    def _on_message(self, heard: Heard, *, now: float) -> None:
        match heard.body:
            case Status() as status:
                self._on_status(status, heard.epoch, now=now)
            case Announcement() as announcement:
                self._on_announcement(announcement, now=now)
            case Lease() as lease:
                self._on_lease(lease, now=now)
            case Receipt() as receipt:
                self._on_receipt(receipt, now=now)
            case Credit() as credit:
                self._effects += self.outbox.credit(credit, now=now)
            case ModelChunk() as chunk:
                if self.following is not None:
                    self._effects += self.following.chunk(chunk, own_topic=heard.own_topic, now=now)
            case Notice() as notice:
                self._note("warning", f"the coordinator says: {notice.detail} ({notice.code})")
            case Body():
                raise RemoteError("not a message for a device", reason="wrong-kind")

    def _reject(self, topic: str, error: RemoteError) -> None:
        parts = topic.removeprefix(f"{self.topics.root}/").split("/")
        place = parts[0] if parts[0] == "model" else parts[-1][:32]
        self.rejected[place, error.reason] += 1
        if self.rejected[place, error.reason] > 1:
            return
        if isinstance(error, StaleError):
            self._note("info", f"ignored a message on {topic[:160]}: {error}")
            return
        mend = ""
        if error.reason == "bad-signature" and place in {"status", "run"}:
            mend = (
                "; if the coordinator was set up anew, remove coordinator.pub from the agent's state folder"
            )
        self._note(
            "warning", f"ignored a message on {topic[:160]}: {error}{mend}; others like it are only counted"
        )
        self._report("bad-message", f"{place}: {error}")

    def _new_epoch(self, epoch: int, *, now: float) -> None:
        """Another start of the coordinator: what it had not put on disk, it does not know."""
        self.ledger.new_epoch(epoch, now=now)
        self.outbox.send_again(now=now)
        self.contact.expect_announcement(now=now)

    def _on_status(self, status: Status, epoch: int, *, now: float) -> None:
        before = self.contact.coordinator_online
        if not self.contact.status(status, epoch):
            return
        if before is not None and before != status.online:
            self._note("info", "the coordinator is back" if status.online else "the coordinator is away")
        self.outbox.coordinator(online=status.online, now=now)

    # ------------------------------------------------------------------------------ runs

    def _on_announcement(self, announcement: Announcement, *, now: float) -> None:
        self.announcement, self._announced_at = announcement, now
        self.contact.announced(running=announcement.state == "running", now=now)
        self._consider(now=now)

    def _consider(self, *, now: float) -> None:
        """Whether the announced run is ours, and what follows from it."""
        announcement, opened = self.announcement, self.trainer.opened
        if announcement is None or opened is None:
            return
        if announcement.state != "running":
            self._end_run(announcement.run, announcement.state, now=now)
            return
        self.idle_reason = _difference(announcement, opened)
        if self.idle_reason:
            self._stop_following()
            if announcement.task.name == opened.task.name and self._mismatch_told != announcement.run:
                self._mismatch_told = announcement.run
                self._note("warning", self.idle_reason, run=announcement.run)
                self._report("task-mismatch", self.idle_reason, run=announcement.run)
            return
        if self.following is None or self.following.run != announcement.run:
            self._follow(announcement.run, now=now)
        assert self.following is not None
        self._effects += self.following.announced(announcement, now=now)
        run, version = announcement.run, announcement.manifest.version
        if in_cohort(announcement.cohort, announcement.round, self.limits.device):
            expires_at = self._announced_at + announcement.lease_s
            self._offer_lease(HeldLease(run, announcement.lease, version, now, expires_at))
        early = self.leases.take_early(run)
        if early is not None:
            self._offer_lease(early)

    def _follow(self, run: str, *, now: float) -> None:
        self._stop_following()
        if self._ended == run:
            self._ended = ""
        if self.ledger.activate(run, now=now):
            self._note("info", "a new run", run=run)
        index = self._indexes.pop(run, ModelIndex())
        device, chance = self.limits.device, self._chance
        self.following = Following(run, index, topics=self.topics, device=device, chance=chance)
        if self.contact.session is not None:
            self.following.pull.connected()

    def _stop_following(self) -> None:
        self.leases.drop()
        if self.following is not None:
            self._effects += [*self.following.pull.disconnected(), *self.following.flush()]
            self._indexes[self.following.run] = self.following.replica.index
            self.following = None

    def _end_run(self, run: str, how: str, *, now: float) -> None:
        if self.following is not None and self.following.run == run:
            self._stop_following()
        self.idle_reason = f"the run {run} is {how}"
        if self._ended != run:
            self._ended = run
            self._note("info", f"the run is {how}", run=run)
        dropped = self.outbox.counters(run)
        for counter in dropped:
            self._settle(run, counter, now=now)
        if dropped:
            text = f"dropped {len(dropped)} updates that the run did not wait for"
            self._note("warning", text, run=run, dropped=len(dropped))

    # ------------------------------------------------------------------------------ leases

    def _on_lease(self, lease: Lease, *, now: float) -> None:
        held = HeldLease(lease.run, lease.lease, lease.version, now, now + lease.lease_s)
        if self.following is not None and self.following.run == lease.run:
            self._offer_lease(held)
        elif lease.run != self._ended:
            # It overtook the announcement, or the broker keeps none for us.
            self.leases.keep_early(held)
            self.contact.ask_at_once(now=now)

    def _offer_lease(self, lease: HeldLease) -> None:
        self.leases.offer(lease, committed=self.ledger.state.runs[lease.run].lease)

    def train_at(self) -> float | None:
        """When training can begin; None: not before something happens."""
        following, lease = self.following, self.leases.held
        if (
            following is None
            or lease is None
            or not self.trainer.ready
            or not following.trainer_is_up_to_date
        ):
            return None
        loaded, newest = following.replica.loaded, following.newest
        assert loaded is not None
        assert newest is not None
        if loaded < lease.version:
            return None
        patient_until = lease.arrived_at + PATIENCE_S if loaded < newest else 0.0
        return max(self.trainer.resume_at, patient_until)

    def _advance_lease(self, *, now: float) -> None:
        """Let go of a lease that cannot be served; the coordinator need not wait for it."""
        lease = self.leases.held
        if lease is None:
            return
        if now >= lease.expires_at:
            self._note("info", f"lease {lease.lease} ran out before training could begin", run=lease.run)
            self.leases.done()
            return
        if len(self.outbox) >= self.limits.outbox_limit:
            why = f"{len(self.outbox)} updates wait for their receipts, and no more than that are kept"
        elif self.trainer.resume_at >= lease.expires_at:
            why = f"the trainer rests after a failure: {self.trainer.last_failure}"
        else:
            return
        self._note("warning", f"does not train for lease {lease.lease}: {why}", run=lease.run)
        self._report("busy", why, run=lease.run, lease=lease.lease)
        self.leases.done()

    # ------------------------------------------------------------------------------ the trainer

    def _ask_trainer(self, *, now: float) -> None:
        """Hand the trainer what comes first: a residual to restore, a newer version, a training."""
        if not self.trainer.ready:
            return
        refused = self.outbox.next_restore()
        if refused is not None:
            run, counter = refused.header.run, refused.header.counter
            before = self.ledger.state.runs[run].residual_file
            restore = Restore(run, counter, refused.file, before, f"restored-{counter}.bin")
            self._effects += self.trainer.ask(restore, now=now)
            return
        step = None if self.following is None else self.following.next_step()
        if step is not None:
            self._effects += self.trainer.ask(step, now=now)
            return
        train_at = self.train_at()
        if train_at is not None and train_at <= now:
            self._train(now=now)

    def _train(self, *, now: float) -> None:
        announcement, following = self.announcement, self.following
        assert announcement is not None
        assert following is not None
        lease = self.leases.begin()
        version = following.replica.loaded
        assert version is not None
        kept = self.ledger.state.runs[lease.run]
        request = Train(
            run=lease.run,
            counter=kept.counter + 1 if kept.counter else max(1, lease.lease),
            lease=lease.lease,
            base_version=version,
            seed=announcement.seed,
            train=announcement.train,
            upload=announcement.upload,
            updates_done=kept.updates_done,
            residual_file=kept.residual_file,
            evaluate=announcement.evaluate,
        )
        left_s = lease.expires_at - now
        self._effects += self.trainer.ask(request, now=now, lease_left_s=left_s, usual_s=kept.usual_s)

    def _on_trainer(self, event: TrainerStarted | TrainerAnswered | TrainerDied, *, now: float) -> None:
        match event:
            case TrainerStarted():
                self._effects += self.trainer.started(now=now)
            case TrainerDied():
                self._trainer_gone(self.trainer.died(event.detail, now=now))
            case TrainerAnswered():
                self._on_answer(event.answer, now=now)

    def _on_answer(self, answer: Answer, *, now: float) -> None:
        if self.trainer.state == "opening":
            self._on_opening(answer, now=now)
            return
        began = self.trainer.since
        request = self.trainer.answered(now=now)
        match answer, request:
            case TrainerRefused(), _:
                self._on_refusal(answer, request, now=now)
            case ModelLoaded(), _:
                if self.following is not None:
                    self.following.loaded(answer)
            case TrainingFinished(), Train():
                self._on_trained(answer, request, began=began, now=now)
            case ResidualRestored(), Restore():
                self._on_restored(answer, now=now)
            case _:
                raise AssertionError(f"{answer} does not answer {request}")

    def _on_opening(self, answer: Answer, *, now: float) -> None:
        if isinstance(answer, TrainerRefused):
            self._task_problem = f"{answer.code}: {answer.detail}"[:MAX_TEXT_CHARS]
            self._note("error", self._task_problem)
            _, effects = self.trainer.stop(answer.detail, now=now)
            self._effects += effects
            return
        assert isinstance(answer, TaskOpened)
        self.trainer.task_opened(answer, now=now)
        if self._task_problem:
            self._task_problem = ""
            self.trainer.succeeded()
        name = f"{answer.task.name} {answer.task.version}"
        self._note("info", f"the task {name} is open, with {answer.num_examples} examples")
        try:
            self._consider(now=now)
        except RemoteError as error:
            self._reject(self.topics.announcement, error)

    def _trainer_gone(self, request: Request | None) -> None:
        """The child is no more; its replica went with it."""
        if self.following is not None:
            self.following.trainer_lost_it()
        detail = self.trainer.last_failure
        self._note("warning", f"the trainer ended: {detail}; starting it again")
        if isinstance(request, Train):
            self._report("train-failed", f"the trainer ended: {detail}", run=request.run, lease=request.lease)

    def _on_refusal(self, refusal: TrainerRefused, request: Request, *, now: float) -> None:
        match request:
            case Train() if refusal.code == "bad-residual":
                self._lose_residual(request.run, refusal.detail, now=now)
                if self.following is not None and self.following.run == request.run:
                    self.leases.begin_again(request.run)
            case Train():
                if refusal.code == "bad-model" and self.following is not None:
                    self.following.trainer_lost_it()
                self.trainer.failed(refusal.detail, now=now)
                self._note("error", f"training failed: {refusal.detail}", run=request.run)
                code: ReportCode = "no-data" if refusal.code == "no-data" else "train-failed"
                self._report(code, refusal.detail, run=request.run, lease=request.lease)
            case Restore() if refusal.code == "bad-residual":
                self._lose_residual(request.run, refusal.detail, now=now)
            case Restore():
                why = f"the refused update {request.counter} could not be put back: {refusal.detail}"
                self._note("error", why, run=request.run)
                self._report("other", why, run=request.run)
                self._settle(request.run, request.counter, now=now)
            case _:
                if self.following is not None:
                    self._effects += self.following.start_over(
                        f"the trainer refused the model ({refusal.detail})", now=now
                    )

    def _lose_residual(self, run: str, detail: str, *, now: float) -> None:
        self._note("warning", f"the residual is lost: {detail}; going on from zero", run=run)
        self._report("other", f"the residual is lost: {detail}", run=run)
        self.ledger.residual_lost(run, now=now)

    def _on_trained(self, finished: TrainingFinished, request: Train, *, began: float, now: float) -> None:
        took_s, run, opened = now - began, request.run, self.trainer.opened
        assert opened is not None
        self.trainer.succeeded()
        if self.ledger.run(run) is None or run == self._ended:
            self._note("info", "the run ended before this training did; its update is dropped", run=run)
            self._effects.append(RemoveFiles(run, (finished.payload_file, finished.residual_file)))
            return
        schema_hash = opened.task.schema_hash
        pending = self.ledger.trained(request, finished, schema_hash=schema_hash, took_s=took_s, now=now)
        self.outbox.add(pending, now=now)
        text = f"trained on version {request.base_version} in {took_s:.2f} s, {finished.payload.size} bytes to send"
        self._note("info", text, run=run, round=request.lease)

    # ------------------------------------------------------------------------------ receipts

    def _on_receipt(self, receipt: Receipt, *, now: float) -> None:
        if (receipt.outcome == "accepted") != (receipt.residual == "keep"):
            raise RemoteError(
                f"a receipt that is {receipt.outcome} and says {receipt.residual}", reason="bad-receipt"
            )
        run, counter = receipt.run, receipt.counter
        if (run, counter) not in self.outbox:
            return
        if receipt.outcome == "accepted":
            self._note("debug", f"update {counter} is accepted", run=run)
            self._settle(run, counter, now=now)
            return
        why = f"{receipt.reason}: {receipt.detail}" if receipt.detail else receipt.reason
        self._note("warning", f"update {counter} is refused ({why}); residual: {receipt.residual}", run=run)
        if receipt.residual == "restore":
            self.outbox.hold_for_restore(run, counter)
        else:
            self._settle(run, counter, now=now)

    def _on_restored(self, restored: ResidualRestored, *, now: float) -> None:
        run, counter = restored.run, restored.counter
        if self.ledger.run(run) is None or (run, counter) not in self.outbox:
            self._effects.append(RemoveFiles(run, (restored.residual_file,)))
            return
        self.ledger.restored(run, counter, restored.residual_file, now=now)
        self.outbox.remove(run, counter)

    def _settle(self, run: str, counter: int, *, now: float) -> None:
        """The last word on an update was spoken."""
        self.outbox.remove(run, counter)
        self.ledger.settled(run, counter, now=now)

    # ------------------------------------------------------------------------------ small things

    def _note(
        self, level: Literal["debug", "info", "warning", "error"], text: str, **fields: str | float
    ) -> None:
        self._effects.append(Note(level, text, fields))

    def _report(
        self, code: ReportCode, detail: str, *, run: str | None = None, lease: int | None = None
    ) -> None:
        if self.contact.session is not None:
            body = Report(code=code, detail=detail[:MAX_TEXT_CHARS], run=run, lease=lease)
            self._effects.append(Send(self.topics.up(self.limits.device, "report"), body))


def _difference(announcement: Announcement, opened: TaskOpened) -> str:
    """Why the announced task is not the opened one; empty when it is."""
    theirs, ours = announcement.task, opened.task
    if theirs.name != ours.name:
        return f"the run {announcement.run} trains {theirs.name}, and this device has {ours.name}"
    if theirs.version != ours.version:
        what, wanted, mine = "version", theirs.version, ours.version
    elif theirs.schema_hash != ours.schema_hash:
        what, wanted, mine = "the tensor schema", theirs.schema_hash[:12], ours.schema_hash[:12]
    else:
        return ""
    return (
        f"the run {announcement.run} trains {theirs.name} with {what} {wanted}, and this device has {mine}: "
        "install the run's task here"
    )
