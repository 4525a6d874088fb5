"""The decisions for asynchronous runs: who gets a lease, when the buffer makes a step, when a version is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedmq_coordinator.core.roster import Roster
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.selection import aim, choose
from fedmq_coordinator.core.strategies import Strategy
from fedmq_coordinator.core.timing import flush_at


@dataclass(frozen=True)
class TakeStep:
    """Make a step of what is there."""

    why: Literal["buffer", "flush", "arrival"]


@dataclass(frozen=True)
class Publish:
    """Publish a version."""


@dataclass(frozen=True)
class Grant:
    """Give these devices leases one by one: they came, or came free, between two publications."""

    devices: list[str]


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until`, unless something happens."""

    until: float | None


Decision = TakeStep | Publish | Grant | Wait


def decide(run: Run, strategy: Strategy, roster: Roster, *, now: float) -> Decision:
    """What to do with an asynchronous run now; asked again after each decision until it says `Wait`.

    Args:
        run: an active run whose first version is published.
        strategy: the run's.
        roster: the devices as they are now; a lease of one that is not there counts for nobody's place.
        now: seconds since the epoch.
    """
    buffer = run.accumulator.buffer
    if buffer.num_updates and strategy.ready(buffer):
        return TakeStep("arrival" if run.settings.mode == "fedasync" else "buffer")
    places = _places(run, roster)
    waits: list[float] = []
    if run.dirty:
        due = run.published_at + run.settings.strategy.publish_interval_s
        if now >= due:
            return Publish()
        waits.append(due)
    started = run.num_accepted > 0 or bool(run.leases)
    enough = started or len(roster.available) >= run.settings.selection.min_available_devices
    if roster.idle and places > 0 and enough:
        return Grant(choose(run, roster.idle, places))
    if buffer.num_updates and not run.dirty:
        if not roster.num_at_work:
            return TakeStep("flush")
        due_flush = flush_at(run, roster) if 2 * buffer.num_updates >= _size(strategy) else None
        if due_flush is not None:
            if now >= due_flush:
                return TakeStep("flush")
            waits.append(due_flush)
    return Wait(min(waits) if waits else None)


def with_version(run: Run, roster: Roster) -> list[str]:
    """Who gets a lease with the announcement of a new version."""
    return choose(run, roster.free, max(0, _places(run, roster)))


def _places(run: Run, roster: Roster) -> int:
    """How many more may be at work."""
    return aim(run, len(roster.available)) - roster.num_at_work if roster.available else 0


def _size(strategy: Strategy) -> int:
    return int(getattr(strategy, "buffer_size", 1))
