"""The trainer's work: which of it comes next, and what becomes of what it did."""

from __future__ import annotations

from collections.abc import Callable

from fedmq_edge_agent.core.desk import Desk, ReportCode
from fedmq_edge_agent.core.effects import (
    ApplyDelta,
    LoadSnapshot,
    OpenTask,
    RemoveFiles,
    Request,
    Restore,
    Train,
)
from fedmq_edge_agent.core.events import (
    Answer,
    ModelLoaded,
    ResidualRestored,
    TaskOpened,
    TrainerAnswered,
    TrainerDied,
    TrainerRefused,
    TrainerStarted,
    TrainingFinished,
)
from fedmq_edge_agent.disk_faults import DiskFault, fault_in
from fedmq_protocol.limits import MAX_TEXT_CHARS, PACKET_OVERHEAD_BYTES

PATIENCE_S = 2.0
"""How long a leased training waits for a newer version that is still on its way."""


class Workshop:
    """Sees to the trainer.

    Args:
        desk: the books.
        task_opened: called when it is known what this device can train.
    """

    def __init__(self, desk: Desk, *, task_opened: Callable[[float], None]) -> None:
        self._desk = desk
        self._task_opened = task_opened
        self._task_problem = ""

    @property
    def problem(self) -> str:
        """Why this device cannot train now, for the operator; empty when it can."""
        trainer = self._desk.trainer
        if self._task_problem:
            return self._task_problem
        if trainer.unfit:
            text = f"the trainer failed {trainer.failures} times in a row, last: {trainer.last_failure}"
            return text[:MAX_TEXT_CHARS]
        return "" if trainer.opened is not None else "the task is being opened"

    def advance(self, *, now: float) -> None:
        """End a trainer that hangs; start one where there is none."""
        trainer = self._desk.trainer
        if trainer.hung(now=now):
            took_s = now - trainer.since
            request, effects = trainer.stop(f"it hung, and was ended after {took_s:.0f} s", now=now)
            self._desk.do(*effects)
            self._trainer_gone(request)
        trainer.held = self._desk.conditions.harmful and trainer.opened is not None
        if self._desk.conditions.harmful and isinstance(trainer.request, Train):
            self._break_off(trainer.request, now=now)
        self._desk.do(*trainer.start(now=now))

    def _break_off(self, training: Train, *, now: float) -> None:
        """End a training that would hurt the board. Nothing of it is committed: nothing is lost but its time."""
        why = self._desk.conditions.problem
        self._desk.do(*self._desk.trainer.send_home(now=now))
        if self._desk.following is not None:
            self._desk.following.trainer_lost_it()
        self._desk.note(
            "warning", f"broke off the training for lease {training.lease}: {why}", run=training.run
        )
        self._desk.report("busy", why, run=training.run, lease=training.lease)

    def train_at(self) -> float | None:
        """When training can begin; None: not before something happens."""
        following, lease = self._desk.following, self._desk.leases.held
        if (
            following is None
            or lease is None
            or not self._desk.trainer.ready
            or not following.trainer_is_up_to_date
        ):
            return None
        loaded, newest = following.replica.loaded, following.newest
        assert loaded is not None
        if newest is None or loaded < lease.version:  # none: the run's announcement was not believed
            return None
        patient_until = lease.arrived_at + PATIENCE_S if loaded < newest else 0.0
        return max(self._desk.trainer.resume_at, patient_until)

    def advance_lease(self, *, now: float) -> None:
        """Let go of a lease that cannot be served; the coordinator need not wait for it."""
        lease = self._desk.leases.held
        if lease is None:
            return
        if now >= lease.expires_at:
            self._desk.note("info", f"lease {lease.lease} ran out before training could begin", run=lease.run)
            self._desk.leases.done()
            return
        if not self._desk.storage.takes:
            why = self._desk.storage.problem
        elif self._desk.conditions.resting:
            why = self._desk.conditions.problem
        elif len(self._desk.outbox) >= self._desk.limits.outbox_limit:
            why = f"{len(self._desk.outbox)} updates wait for their receipts, and no more than that are kept"
        elif not self._desk.budget.fits(self._round_bytes(lease.run), "the next round"):
            why = self._desk.budget.problem
        elif self._desk.trainer.resume_at >= lease.expires_at:
            why = f"the trainer rests after a failure: {self._desk.trainer.last_failure}"
        else:
            return
        self._desk.note("warning", f"does not train for lease {lease.lease}: {why}", run=lease.run)
        self._desk.report("busy", why, run=lease.run, lease=lease.lease)
        self._desk.leases.done()

    def _round_bytes(self, run: str) -> int:
        """About what a round takes: an update like the last one, and a delta like the newest."""
        announcement, kept = self._desk.announcement, self._desk.ledger.run(run)
        update = 0 if kept is None or kept.usual_bytes is None else kept.usual_bytes
        delta = None if announcement is None else announcement.manifest.delta
        return update + (0 if delta is None else delta.size) + 2 * PACKET_OVERHEAD_BYTES

    # ------------------------------------------------------------------------------ what it is asked

    def ask_trainer(self, *, now: float) -> None:
        """Hand the trainer what comes first: a residual to restore, a newer version, a training."""
        if not self._desk.trainer.ready:
            return
        refused = self._desk.outbox.next_restore() if self._desk.storage.takes else None
        if refused is not None:
            run, counter = refused.header.run, refused.header.counter
            before = self._desk.ledger.state.runs[run].residual_file
            restore = Restore(run, counter, refused.file, before, f"restored-{counter}.bin")
            self._desk.effects += self._desk.trainer.ask(restore, now=now)
            return
        step = None if self._desk.following is None else self._desk.following.next_step()
        if step is not None:
            self._desk.effects += self._desk.trainer.ask(step, now=now)
            return
        train_at = self.train_at()
        if train_at is not None and train_at <= now:
            self._train(now=now)

    def _train(self, *, now: float) -> None:
        announcement, following = self._desk.announcement, self._desk.following
        assert announcement is not None
        assert following is not None
        lease = self._desk.leases.begin()
        version = following.replica.loaded
        assert version is not None
        kept = self._desk.ledger.state.runs[lease.run]
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
        self._desk.effects += self._desk.trainer.ask(
            request, now=now, lease_left_s=left_s, usual_s=kept.usual_s
        )

    # ------------------------------------------------------------------------------ what it answers

    def trainer_event(self, event: TrainerStarted | TrainerAnswered | TrainerDied, *, now: float) -> None:
        """Something happened to the trainer of the present generation."""
        match event:
            case TrainerStarted():
                self._desk.effects += self._desk.trainer.started(now=now)
            case TrainerDied():
                self._trainer_gone(self._desk.trainer.died(event.detail, now=now))
            case TrainerAnswered():
                self._on_answer(event.answer, now=now)

    def _on_answer(self, answer: Answer, *, now: float) -> None:
        if self._desk.trainer.state == "opening":
            self._on_opening(answer, now=now)
            return
        began = self._desk.trainer.since
        request = self._desk.trainer.answered(now=now)
        match answer, request:
            case TrainerRefused(), _:
                self._on_refusal(answer, request, now=now)
            case ModelLoaded(), _:
                if self._desk.following is not None:
                    self._desk.following.loaded(answer)
            case TrainingFinished(), Train():
                self._on_trained(answer, request, began=began, now=now)
            case ResidualRestored(), Restore():
                self._on_restored(answer, now=now)
            case _:
                raise AssertionError(f"{answer} does not answer {request}")

    def _on_opening(self, answer: Answer, *, now: float) -> None:
        if isinstance(answer, TrainerRefused):
            self._task_problem = f"{answer.code}: {answer.detail}"[:MAX_TEXT_CHARS]
            self._desk.note("error", self._task_problem)
            _, effects = self._desk.trainer.stop(answer.detail, now=now)
            self._desk.effects += effects
            return
        assert isinstance(answer, TaskOpened)
        self._desk.trainer.task_opened(answer, now=now)
        if self._task_problem:
            self._task_problem = ""
            self._desk.trainer.succeeded()
        name = f"{answer.task.name} {answer.task.version}"
        self._desk.note("info", f"the task {name} is open, with {answer.num_examples} examples")
        self._task_opened(now)

    def _trainer_gone(self, request: Request | None) -> None:
        """The child is no more; its replica went with it."""
        if self._desk.following is not None:
            self._desk.following.trainer_lost_it()
        detail = self._desk.trainer.last_failure
        self._desk.note("warning", f"the trainer ended: {detail}; starting it again")
        if isinstance(request, Train):
            self._desk.report(
                "train-failed", f"the trainer ended: {detail}", run=request.run, lease=request.lease
            )

    def _on_refusal(self, refusal: TrainerRefused, request: Request, *, now: float) -> None:
        fault = fault_in(refusal.code)
        match request:
            case Train() | Restore() if fault is not None:
                self._disk_refused(fault, refusal, request, now=now)
            case Train() if refusal.code == "bad-residual":
                self._lose_residual(request.run, refusal.detail, now=now)
                if self._desk.following is not None and self._desk.following.run == request.run:
                    self._desk.leases.begin_again(request.run)
            case Train():
                if refusal.code == "bad-model" and self._desk.following is not None:
                    self._desk.following.trainer_lost_it()
                self._desk.trainer.failed(refusal.detail, now=now)
                self._desk.note("error", f"training failed: {refusal.detail}", run=request.run)
                code: ReportCode = "no-data" if refusal.code == "no-data" else "train-failed"
                self._desk.report(code, refusal.detail, run=request.run, lease=request.lease)
            case Restore() if refusal.code == "bad-residual":
                self._lose_residual(request.run, refusal.detail, now=now)
            case Restore():
                why = f"the refused update {request.counter} could not be put back: {refusal.detail}"
                self._desk.note("error", why, run=request.run)
                self._desk.report("other", why, run=request.run)
                self._desk.settle(request.run, request.counter, now=now)
            case OpenTask():
                raise AssertionError("opening is answered before this")
            case LoadSnapshot() | ApplyDelta():
                following = self._desk.following
                if following is None or following.run != request.run:
                    return
                if following.is_void:  # it was about a file that was never written, or is gone
                    following.trainer_lost_it()
                else:
                    self._desk.effects += following.start_over(
                        f"the trainer refused the model ({refusal.detail})", now=now
                    )

    def _disk_refused(
        self, fault: DiskFault, refusal: TrainerRefused, request: Train | Restore, *, now: float
    ) -> None:
        """Nothing is lost: a lease is given back, and what was to be put back stays in the outbox."""
        restoring = isinstance(request, Restore)
        self._desk.disk_refused(
            fault, refusal.detail, room_bytes=refusal.room_bytes, chain=restoring, now=now
        )
        if isinstance(request, Train):
            self._desk.report("busy", refusal.detail, run=request.run, lease=request.lease)

    def _lose_residual(self, run: str, detail: str, *, now: float) -> None:
        self._desk.note("warning", f"the residual is lost: {detail}; going on from zero", run=run)
        self._desk.report("other", f"the residual is lost: {detail}", run=run)
        self._desk.ledger.residual_lost(run, now=now)

    def _on_trained(self, finished: TrainingFinished, request: Train, *, began: float, now: float) -> None:
        took_s, run, opened = now - began, request.run, self._desk.trainer.opened
        assert opened is not None
        self._desk.trainer.succeeded()
        if self._desk.ledger.run(run) is None or run == self._desk.ended:
            self._desk.note("info", "the run ended before this training did; its update is dropped", run=run)
            self._desk.do(RemoveFiles(run, (finished.payload_file, finished.residual_file)))
            return
        schema_hash = opened.task.schema_hash
        pending = self._desk.ledger.trained(
            request, finished, schema_hash=schema_hash, took_s=took_s, now=now
        )
        self._desk.outbox.add(pending, now=now)
        text = f"trained on version {request.base_version} in {took_s:.2f} s, {finished.payload.size} bytes to send"
        self._desk.note("info", text, run=run, lease=request.lease)

    def _on_restored(self, restored: ResidualRestored, *, now: float) -> None:
        run, counter = restored.run, restored.counter
        if self._desk.ledger.run(run) is None or (run, counter) not in self._desk.outbox:
            self._desk.do(RemoveFiles(run, (restored.residual_file,)))
            return
        self._desk.ledger.restored(run, counter, restored.residual_file, now=now)
        self._desk.outbox.remove(run, counter)
