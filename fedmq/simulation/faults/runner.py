"""Many histories, in several processes, up to the first that breaks; where they were interrupted they go on.

A history costs the same whichever process runs it, and nothing of it is kept but counts, so that the work of processes
is a list of ranges of seeds. Progress is a file with the first seed that is not done and the counts so far; it is worth
something to the very code that wrote it, whose digest is in it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import fedmq
import fedmq_broker
import fedmq_coordinator
import fedmq_edge_agent
import fedmq_protocol
from fedmq.simulation.faults.drawing import draw_plan
from fedmq.simulation.faults.history import History, Outcome
from fedmq.simulation.faults.shrink import shrink
from fedmq.simulation.faults.story import tell
from fedmq_protocol.errors import UsageError

_BATCH: Final = 20
_AHEAD: Final = 3
"""Batches in the queue for each process."""


@dataclass
class Tally:
    """Counts over histories.

    Attributes:
        histories: how many.
        events: told to cores.
        fewest_events: of a history.
        fewest_faults: that took effect in one.
        struck: faults that took effect, by kind.
        facts: what happened otherwise.
        busy_s: processor time.
    """

    histories: int = 0
    events: int = 0
    fewest_events: int | None = None
    fewest_faults: int | None = None
    struck: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    busy_s: float = 0.0

    def count(self, outcome: Outcome) -> None:
        """Add one history that did not break."""
        self.histories += 1
        self.events += outcome.events
        faults = outcome.struck.total()
        self.fewest_events = (
            outcome.events if self.fewest_events is None else min(self.fewest_events, outcome.events)
        )
        self.fewest_faults = faults if self.fewest_faults is None else min(self.fewest_faults, faults)
        self.struck += outcome.struck
        self.facts += outcome.facts

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "struck": dict(self.struck), "facts": dict(self.facts)}

    def add(self, other: Tally) -> None:
        """Add another tally."""
        self.histories += other.histories
        self.events += other.events
        for name in ("fewest_events", "fewest_faults"):
            known = [each for each in (getattr(self, name), getattr(other, name)) if each is not None]
            setattr(self, name, min(known, default=None))
        self.struck += other.struck
        self.facts += other.facts
        self.busy_s += other.busy_s


@dataclass(frozen=True)
class Failure:
    """The first history that broke, and its story."""

    seed: int
    invariant: str
    story: str


@dataclass
class Batch:
    """What one process has done: seeds `first` ... `first + count - 1`, or up to a failure."""

    first: int
    count: int
    tally: Tally = field(default_factory=Tally)
    failure: Failure | None = None


def replay(seed: int) -> tuple[Outcome, str]:
    """One history by its seed; where it breaks, the story of the smallest that was found to break likewise."""
    outcome = History(draw_plan(seed)).run()
    if outcome.broken is None:
        return outcome, tell(outcome)
    again = shrink(outcome.plan, outcome.broken.invariant)
    if again is None:
        return outcome, tell(outcome)
    left = f"shrunk from {len(outcome.plan.faults)} faults and {len(outcome.plan.devices)} devices\n"
    return outcome, left + tell(again) + f"\n\n  as data: {again.plan.dump()}"


def work(first: int, count: int) -> Batch:
    """Run a range of seeds; what a process does."""
    batch, began = Batch(first, count), time.process_time()
    gc.disable()  # histories leave cycles behind: one collection a batch costs less than one every few hundred objects
    try:
        for seed in range(first, first + count):
            outcome = History(draw_plan(seed)).run()
            if outcome.broken is not None:
                batch.failure = Failure(seed, outcome.broken.invariant, replay(seed)[1])
                break
            batch.tally.count(outcome)
            del outcome
    finally:
        gc.enable()
        gc.collect()
    batch.tally.busy_s = time.process_time() - began
    return batch


def run_histories(
    histories: int,
    *,
    seed: int,
    jobs: int,
    resume: Path | None = None,
    progress: Callable[[Tally], object] = lambda _: None,
) -> tuple[Tally, Failure | None]:
    """Run histories `seed` ... `seed + histories - 1`, or up to the first that breaks.

    Args:
        histories: how many.
        seed: the first one's.
        jobs: processes.
        resume: goes on where an interrupted run of the same code stopped, and writes down how far it came.
        progress: told of the counts so far, now and then.

    Raises:
        UsageError: `resume` is of other code, or of another run, or cannot be read and written.
    """
    tally, done = Tally(), 0
    if resume is not None:
        if resume.exists():
            done, tally = _load(resume, seed=seed, histories=histories)
        _save(resume, tally, seed=seed, histories=histories, done=done)  # rather now than after an hour
    progress(tally)
    waiting: deque[Future[Batch]] = deque()
    with _pool(jobs) as submit:
        ranges = _ranges(seed + done, seed + histories)
        while True:
            while len(waiting) < jobs * _AHEAD and (following := next(ranges, None)) is not None:
                waiting.append(submit(*following))
            if not waiting:
                return tally, None
            batch = waiting.popleft().result()
            tally.add(batch.tally)
            progress(tally)
            if batch.failure is not None:
                for rest in waiting:
                    rest.cancel()
                return tally, batch.failure
            if resume is not None:
                _save(resume, tally, seed=seed, histories=histories, done=batch.first + batch.count - seed)


def _ranges(first: int, end: int) -> Iterator[tuple[int, int]]:
    for start in range(first, end, _BATCH):
        yield start, min(_BATCH, end - start)


@contextmanager
def _pool(jobs: int) -> Iterator[Callable[[int, int], Future[Batch]]]:
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_work
    ) as pool:
        yield lambda first, count: pool.submit(work, first, count)


def _begin_work() -> None:
    """In a process of the pool: what is here stays, and nobody works on for a parent that was killed."""
    gc.freeze()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


# ---------------------------------------------------------------------------------------- the progress file


def code_digest() -> str:
    """Of every module that a history runs: a result is worth something for the code that it was found with."""
    digest = hashlib.sha256()
    for package in (fedmq, fedmq_broker, fedmq_coordinator, fedmq_edge_agent, fedmq_protocol):
        for root in package.__path__:
            for path in sorted(Path(root).rglob("*.py")):
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _load(path: Path, *, seed: int, histories: int) -> tuple[int, Tally]:
    try:
        plain = json.loads(path.read_text())
        written_by = plain["code"]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} was not written by --resume: name another file") from error
    if written_by != code_digest():
        raise UsageError(
            f"{path} was written by other code: what it has found says nothing of this one; remove it"
        )
    if plain["seed"] != seed or plain["done"] > histories:
        raise UsageError(f"{path} is of a run that begins with seed {plain['seed']}: give that, or remove it")
    fields = plain["tally"]
    tally = Tally(**fields | {"struck": Counter(fields["struck"]), "facts": Counter(fields["facts"])})
    return plain["done"], tally


def _save(path: Path, tally: Tally, *, seed: int, histories: int, done: int) -> None:
    plain = {
        "code": code_digest(),
        "seed": seed,
        "histories": histories,
        "done": done,
        "tally": tally.plain(),
    }
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(json.dumps(plain))
        fresh.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
