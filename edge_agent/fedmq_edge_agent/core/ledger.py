"""What the device must not forget, and when it is written down: the state, its commits, and the files it outgrew.

What is sent relies on a commit `now`. What would be learnt again (a receipt, an epoch) waits a moment for a commit
that is due anyway: memory cards wear. Files are removed only after the commit of a state that does not name them, so
that a crash leaves rubbish, never a gap.
"""

from __future__ import annotations

from fedmq_edge_agent.core.budget import SANE_CLOCK_S
from fedmq_edge_agent.core.effects import CommitState, Effect, RemoveFiles, RemoveRun, Train
from fedmq_edge_agent.core.events import TrainingFinished
from fedmq_edge_agent.core.state import AgentState, PendingUpdate, RunState, Spent
from fedmq_protocol.limits import MAX_METRICS
from fedmq_protocol.messages import UpdateHeader

SESSION_BLOCK = 100
"""Session numbers are reserved in blocks, so that a connection costs no write.

Small enough that even a device that is restarted every few minutes does not outrun the clock with them.
"""
COMMIT_DELAY_S = 1.0
"""How long what would be learnt again may wait for a commit."""
USUAL_WEIGHT = 0.3
"""Weight of the newest training in the smoothed time that one takes."""


class Ledger:
    """The state, and what is to be done about it.

    Args:
        state: what the last commit left.
        clock_s: seconds since 1970, if the device knows. The session numbers begin no lower, so that they grow even
            when the state was lost, or comes from a backup.
    """

    def __init__(self, state: AgentState, *, clock_s: float = 0.0) -> None:
        self.state = state
        self.durable = state
        """What a restart would begin with."""
        self.commit_at: float | None = None
        """When the next commit is due; None: nothing has changed."""
        self._session = max(state.session, int(clock_s) if clock_s >= SANE_CLOCK_S else 0)
        self._useless: list[tuple[str, str]] = []
        self._over: list[str] = []
        self._announced = state.announced
        self._before = state
        self._leaving: tuple[list[tuple[str, str]], list[str]] = [], []

    def run(self, run: str) -> RunState | None:
        """What is remembered of a run."""
        return self.state.runs.get(run)

    # ------------------------------------------------------------------------------ commits

    def commit_now(self, *, now: float) -> None:
        """What follows relies on it."""
        self.commit_at = now

    def commit_soon(self, *, now: float) -> None:
        """It would be learnt again."""
        if self.commit_at is None:
            self.commit_at = now + COMMIT_DELAY_S

    def commit(self, spent: Spent) -> list[Effect]:
        """Write the state, with the bytes counted so far, then remove what it names no more."""
        self.commit_at = None
        self.state = self.state.model_copy(update={"spent": spent, "announced": self._announced})
        self._before, self.durable = self.durable, self.state
        self._leaving = self._useless.copy(), self._over.copy()
        effects: list[Effect] = [CommitState(self.state)]
        for run in dict.fromkeys(run for run, _ in self._useless if run not in self._over):
            names = dict.fromkeys(name for owner, name in self._useless if owner == run)
            effects.append(RemoveFiles(run, tuple(names)))
        effects += [RemoveRun(run) for run in self._over]
        self._useless.clear()
        self._over.clear()
        return effects

    def refused(self, *, now: float) -> None:
        """The disk did not take the last commit, and what it names no more is still there."""
        self.durable = self._before
        useless, over = self._leaving
        self._leaving = [], []
        self._useless = useless + self._useless
        self._over = [run for run in over if run not in self.state.runs] + self._over
        self.commit_now(now=now)

    def is_durable(self, run: str, counter: int) -> bool:
        """Whether an update is in the outbox on disk."""
        kept = self.durable.runs.get(run)
        return kept is not None and any(pending.header.counter == counter for pending in kept.pending)

    # ------------------------------------------------------------------------------ what changes

    def next_session(self) -> int:
        """A session number that no connection had before; reserved by the commits that surround it."""
        self._session += 1
        return self._session

    def exceed(self, session: int, *, now: float) -> None:
        """The next session number is above this one."""
        if session > self._session:
            self._session = session
            self.reserve_sessions(now=now)

    @property
    def session_is_kept(self) -> bool:
        """Whether a restart would begin above every session number in use."""
        return self.durable.session > self._session

    def identify(self, public_key: bytes, *, now: float) -> None:
        """This device is the one with that key, for ever."""
        if self.state.identity != public_key:
            self.state = self.state.model_copy(update={"identity": public_key})
            self.commit_now(now=now)

    def reserve_sessions(self, *, now: float) -> None:
        """Make sure that a restart begins above every session number in use."""
        if self._session + SESSION_BLOCK // 10 > self.state.session:
            self.state = self.state.model_copy(update={"session": self._session + SESSION_BLOCK})
            self.commit_now(now=now)

    def new_epoch(self, epoch: int, coordinator: bytes, *, now: float) -> None:
        """The coordinator started anew, or is another one."""
        self.state = self.state.model_copy(
            update={"epoch": epoch, "coordinator": coordinator, "announced": 0}
        )
        self._announced = 0
        self.commit_soon(now=now)

    def announced(self, sequence: int) -> None:
        """An announcement came. It is written down with the next commit: an older one would only cost a download."""
        self._announced = sequence

    def activate(self, run: str, *, now: float) -> bool:
        """`run` is the one that is followed; whether it is a new one."""
        new = run not in self.state.runs
        if new or self.state.active != run:
            self.state = self.state.with_run(run).model_copy(update={"active": run})
            self.commit_now(now=now)
            if run in self._over:
                self._over.remove(run)
        return new

    def trained(
        self, request: Train, finished: TrainingFinished, *, schema_hash: str, took_s: float, now: float
    ) -> PendingUpdate:
        """The only point of no return: from this commit on the update exists, with the residual that goes with it."""
        run = request.run
        kept = self.state.runs[run]
        header = UpdateHeader(
            run=run,
            counter=request.counter,
            lease=request.lease,
            base_version=request.base_version,
            schema_hash=schema_hash,
            num_examples=max(1, finished.num_examples),
            payload=finished.payload,
            train_s=finished.train_s,
            metrics=dict(list(finished.metrics.items())[:MAX_METRICS]),
            evaluation=finished.evaluation,
            residual_dropped=finished.residual_dropped,
        )
        pending = PendingUpdate(header=header, file=finished.payload_file)
        self._replace_residual(run, finished.residual_file)
        self.state = self.state.with_run(
            run,
            counter=request.counter,
            lease=max(kept.lease, request.lease),
            updates_done=kept.updates_done + 1,
            usual_bytes=finished.payload.size,
            usual_s=took_s if kept.usual_s is None else kept.usual_s + USUAL_WEIGHT * (took_s - kept.usual_s),
            pending=(*kept.pending, pending),
        )
        self.commit_now(now=now)
        return pending

    def settled(self, run: str, counter: int, *, now: float) -> None:
        """An update has the last word. Until the commit a restart would only send it again."""
        kept = self.run(run)
        if kept is None:
            return
        gone = [pending for pending in kept.pending if pending.header.counter == counter]
        left = tuple(pending for pending in kept.pending if pending.header.counter != counter)
        self.state = self.state.with_run(run, pending=left)
        self._useless += [(run, pending.file) for pending in gone]
        self.commit_soon(now=now)

    def restored(self, run: str, counter: int, residual_file: str, *, now: float) -> None:
        """A refused update's mass is back in the residual: both in one commit."""
        self._replace_residual(run, residual_file)
        self.settled(run, counter, now=now)
        self.commit_now(now=now)

    def residual_lost(self, run: str, *, now: float) -> None:
        """The residual cannot be read: it is zero from now on."""
        if self.run(run) is not None:
            self._replace_residual(run, None)
            self.commit_now(now=now)

    def _replace_residual(self, run: str, residual_file: str | None) -> None:
        before = self.state.runs[run].residual_file
        if before is not None and before != residual_file:
            self._useless.append((run, before))
        self.state = self.state.with_run(run, residual_file=residual_file)

    def sweep(self, *, busy: str | None, now: float) -> list[str]:
        """Forget runs that are neither active, nor at work in the trainer, nor waiting for a receipt; name them."""
        if len(self.state.runs) == 1 and self.state.active in self.state.runs:
            return []  # as always
        over = [
            run
            for run, kept in self.state.runs.items()
            if run not in {self.state.active, busy} and not kept.pending
        ]
        for run in over:
            self.state = self.state.without_run(run)
            self.commit_soon(now=now)
        self._over += over
        return over
