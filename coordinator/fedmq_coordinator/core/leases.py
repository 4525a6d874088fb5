"""The decisions for asynchronous runs: who gets a lease, when the buffer makes a step, when a version is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


def decide(run: Run, strategy: Strategy, available: list[str], online: set[str], *, now: float) -> Decision:
    """What to do with an asynchronous run now; asked again after each decision until it says `Wait`.

    Args:
        run: an active run whose first version is published.
        strategy: the run's.
        available: the eligible devices, those at work among them.
        online: devices that are connected; a lease of one that is not counts for nobody's place.
        now: seconds since the epoch.
    """
    buffer = run.accumulator.buffer
    if buffer.num_updates and strategy.ready(buffer):
        return TakeStep("arrival" if run.settings.mode == "fedasync" else "buffer")
    places = _places(run, available, online)
    waits: list[float] = []
    if run.dirty:
        due = run.published_at + run.settings.strategy.publish_interval_s
        if now >= due:
            return Publish()
        waits.append(due)
    idle = [
        device
        for device in available
        if device not in run.leases and run.last_lease_version.get(device, -1) < run.version
    ]
    started = run.num_accepted > 0 or bool(run.leases)
    if idle and places > 0 and (started or len(available) >= run.settings.selection.min_available_devices):
        return Grant(choose(run, idle, places))
    if buffer.num_updates and not run.dirty:
        if online.isdisjoint(run.leases):
            return TakeStep("flush")
        due_flush = flush_at(run)
        if due_flush is not None and 2 * buffer.num_updates >= _size(strategy):
            if now >= due_flush:
                return TakeStep("flush")
            waits.append(due_flush)
    return Wait(min(waits) if waits else None)


def with_version(run: Run, available: list[str], online: set[str]) -> list[str]:
    """Who gets a lease with the announcement of a new version."""
    free = [device for device in available if device not in run.leases]
    return choose(run, free, max(0, _places(run, available, online)))


def _places(run: Run, available: list[str], online: set[str]) -> int:
    """How many more may be at work."""
    at_work = sum(1 for device in run.leases if device in online)
    return aim(run, len(available)) - at_work if available else 0


def _size(strategy: Strategy) -> int:
    return int(getattr(strategy, "buffer_size", 1))
