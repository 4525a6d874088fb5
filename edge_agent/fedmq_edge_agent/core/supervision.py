"""Keeping the trainer child alive and honest: started, given one request at a time, watched, and tried again.

    down --start--> starting --started--> idle <--answer/ask--> busy
      ^________________died, hung, or the task did not open_______|

A crash costs a wait that grows, so that a task which always crashes does not eat the device. A training that fails
while the child lives costs the same wait, during which no lease is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from fedmq_edge_agent.core.backoff import Backoff, Chance
from fedmq_edge_agent.core.effects import (
    ApplyDelta,
    Ask,
    Effect,
    LoadSnapshot,
    OpenTask,
    Request,
    Restore,
    StartTrainer,
    StopTrainer,
    Train,
)
from fedmq_edge_agent.core.events import TaskOpened

RESTART = Backoff(first_s=1.0, longest_s=300.0)
SLOWEST_BYTES_A_S = 1_000_000
"""How much of a snapshot even a slow device takes in a second."""
LOOP_FAILURES = 3
"""After so many failures in a row the device declares itself unfit until it works again."""


@dataclass(frozen=True)
class TimeLimits:
    """How long the child may take, in seconds, before it counts as hung and is killed."""

    start_s: float = 60.0
    open_s: float = 300.0
    model_s: float = 120.0
    """Loading a snapshot, applying a delta, restoring a residual; and for each megabyte of the snapshot one more."""
    first_train_s: float = 600.0
    """A training, while it is not known how long one takes."""
    train_factor: float = 10.0
    """A training, once known: so many times the usual."""
    least_train_s: float = 30.0
    """A training is never given less."""


State = Literal["down", "starting", "opening", "idle", "busy"]


class Supervision:
    """The trainer child as the core sees it.

    Args:
        limits: how long it may take.
        chance: for the jitter of the restarts.
    """

    def __init__(self, *, limits: TimeLimits, chance: Chance) -> None:
        self._limits = limits
        self._chance = chance
        self.state: State = "down"
        self.generation = 0
        self.request: Request | None = None
        self.since = 0.0
        self.opened: TaskOpened | None = None
        """What the task and its data turned out to be; stays while the child is started again."""
        self.failures = 0
        """In a row; a training that succeeds ends the row."""
        self.last_failure = ""
        self.resume_at = 0.0
        """When it is started again, or trains again."""
        self.rests = False
        """It failed, and waits."""
        self.held = False
        """It is not started again for now; nothing is wrong with it."""
        self._deadline: float | None = None
        self._snapshot_bytes = 0
        """Of the last snapshot that was loaded: how large the model is."""

    @property
    def unfit(self) -> bool:
        """Whether it keeps failing; between two attempts it is, so that nobody counts on it."""
        return self.failures >= LOOP_FAILURES and self.rests

    @property
    def ready(self) -> bool:
        """Whether it can be asked for something."""
        return self.state == "idle"

    @property
    def deadline(self) -> float | None:
        """When it counts as hung."""
        return self._deadline

    def next_deadline(self) -> float | None:
        """When it is to be started, has rested, or counts as hung."""
        if self.state == "down" and self.held:
            return None
        if self.state == "down" or (self.state == "idle" and self.rests):
            return self.resume_at
        return self._deadline

    # ------------------------------------------------------------------------------ its life

    def start(self, *, now: float) -> list[Effect]:
        """Start a child, if there is none and the wait is over."""
        if self.rests and self.state in {"idle", "busy"} and now >= self.resume_at:
            self.rests = False
        if self.state != "down" or self.held or now < self.resume_at:
            return []
        self.generation += 1
        self._enter("starting", now, self._limits.start_s)
        return [StartTrainer(self.generation)]

    def started(self, *, now: float) -> list[Effect]:
        """The child is there: let it open the task."""
        self._enter("opening", now, self._limits.open_s)
        self.request = OpenTask()
        return [Ask(self.generation, self.request)]

    def task_opened(self, opened: TaskOpened, *, now: float) -> None:
        """It opened the task."""
        self.opened = opened
        self._enter("idle", now, None)

    def ask(
        self, request: Request, *, now: float, lease_left_s: float = 0.0, usual_s: float | None = None
    ) -> list[Effect]:
        """Hand it a request; it must be ready."""
        assert self.ready, "one request at a time"
        self._enter("busy", now, self._limit(request, lease_left_s=lease_left_s, usual_s=usual_s))
        self.request = request
        return [Ask(self.generation, request)]

    def _limit(self, request: Request, *, lease_left_s: float, usual_s: float | None) -> float:
        match request:
            case OpenTask():
                return self._limits.open_s
            case LoadSnapshot() | ApplyDelta() | Restore():
                if isinstance(request, LoadSnapshot):
                    self._snapshot_bytes = request.ref.size
                return self._limits.model_s + self._snapshot_bytes / SLOWEST_BYTES_A_S
            case Train():
                known = self._limits.first_train_s if usual_s is None else self._limits.train_factor * usual_s
                return max(known, lease_left_s, self._limits.least_train_s)
            case _:
                assert_never(request)

    def answered(self, *, now: float) -> Request:
        """It answered; return what it had been asked."""
        assert self.request is not None, "the shell reports an answer only to a request"
        request = self.request
        self._enter("idle", now, None)
        return request

    def died(self, detail: str, *, now: float) -> Request | None:
        """It is gone; return what it had been asked. It is started again after a wait."""
        request = self.request
        self._enter("down", now, None)
        self.failed(detail, now=now)
        return request

    def stop(self, detail: str, *, now: float) -> tuple[Request | None, list[Effect]]:
        """End it, since it hangs or is of no use; as `died`, and what it still says is void."""
        generation = self.generation
        self.generation += 1
        return self.died(detail, now=now), [StopTrainer(generation)]

    def send_home(self, *, now: float) -> list[Effect]:
        """End it, though nothing is wrong with it."""
        generation = self.generation
        self.generation += 1
        self._enter("down", now, None)
        return [StopTrainer(generation)]

    def hung(self, *, now: float) -> bool:
        """Whether it has taken longer than it may."""
        return self._deadline is not None and now >= self._deadline

    def failed(self, detail: str, *, now: float) -> None:
        """Count a failure, and wait."""
        self.resume_at = now + RESTART.wait_s(self.failures, self._chance)
        self.failures += 1
        self.last_failure = detail
        self.rests = True

    def succeeded(self) -> None:
        """It trained: whatever was wrong is over."""
        self.failures = 0
        self.last_failure = ""
        self.rests = False

    def _enter(self, state: State, now: float, limit_s: float | None) -> None:
        self.state, self.since, self.request = state, now, None
        self._deadline = None if limit_s is None else now + limit_s
