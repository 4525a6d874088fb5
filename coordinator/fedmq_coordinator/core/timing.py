"""How long devices need, and what follows: the straggler deadline, who is waited for, and how long a lease lasts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from statistics import median
from typing import Final

from fedmq_coordinator.core.run import Run

_LEASE_MIN_S: Final = 60.0
_LEASE_FACTOR: Final = 4.0
_FLUSH_INTERVALS: Final = 2.0
_MIN_ARRIVALS: Final = 4


def task_time(run: Run, device: str) -> float | None:
    """The median of what the device's last tasks took, from lease to arrival, in seconds."""
    durations = run.durations.get(device)
    return median(durations) if durations else None


def known_times(run: Run, devices: Iterable[str]) -> list[float]:
    """The task times of those devices that have answered before."""
    return [time for device in devices if (time := task_time(run, device)) is not None]


def round_length(run: Run) -> float:
    """How long the open round waits for stragglers, in seconds.

    `deadline_factor` times the median over the cohort, once half of it is known; until then, and where the factor is
    0, `round_timeout_s`.
    """
    settings = run.settings.selection
    times = known_times(run, run.members)
    if settings.deadline_factor <= 0 or len(times) < max(1, math.ceil(len(run.members) / 2)):
        return settings.round_timeout_s
    wanted = max(settings.deadline_min_s, settings.deadline_factor * median(times))
    return min(settings.round_timeout_s, wanted)


def is_on_time(run: Run, device: str) -> bool:
    """Whether the device is expected before the round's deadline; one that is not trains, but nobody waits for it."""
    time = task_time(run, device)
    return time is None or time <= round_length(run)


def lease_length(run: Run, devices: Iterable[str]) -> float:
    """How long a lease lasts: max(60 s, four times the slowest of these devices' medians), at most a round's time-out.

    Devices of unknown speed have the whole time-out.
    """
    devices = list(devices)
    timeout = run.settings.selection.round_timeout_s
    times = known_times(run, devices)
    if len(times) < len(devices) or not times:
        return timeout
    return min(timeout, max(_LEASE_MIN_S, _LEASE_FACTOR * max(times)))


def flush_at(run: Run) -> float | None:
    """When a partial buffer is stepped although it is not full.

    Twice the median interval after the last arrival, but not before a median device could have trained once.
    """
    arrivals = list(run.arrivals)
    task_times = known_times(run, run.durations)
    if len(arrivals) < _MIN_ARRIVALS:
        return None
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    usual_task_s = median(task_times) if task_times else 0.0
    return arrivals[-1] + max(
        _FLUSH_INTERVALS * median(gaps), usual_task_s, run.settings.strategy.publish_interval_s
    )
