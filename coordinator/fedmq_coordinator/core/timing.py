"""How long devices need, and what follows: the straggler deadline, who is waited for, and how long a lease lasts."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise
from statistics import median
from typing import Final

from fedmq_coordinator.core.roster import Roster, median_of_sorted
from fedmq_coordinator.core.run import Run

_LEASE_MIN_S: Final = 60.0
_LEASE_FACTOR: Final = 4.0
_FLUSH_INTERVALS: Final = 2.0
_MIN_ARRIVALS: Final = 4


def round_length(run: Run, roster: Roster) -> float:
    """How long the open round waits for stragglers, in seconds.

    `deadline_factor` times the median over the cohort, once half of it is known; until then, and where the factor is
    0, `round_timeout_s`.
    """
    settings = run.settings.selection
    times = roster.member_times()
    if settings.deadline_factor <= 0 or len(times) < max(1, math.ceil(len(run.members) / 2)):
        return settings.round_timeout_s
    wanted = max(settings.deadline_min_s, settings.deadline_factor * median_of_sorted(times))
    return min(settings.round_timeout_s, wanted)


def closes_in(run: Run, roster: Roster, *, now: float, resumed_at: float, flows_until: float = 0.0) -> float:
    """Seconds until the open round closes with what it has.

    A coordinator that starts anew waits anew, and where members take turns to send, they have them first.
    """
    begun = max(run.opened_at, resumed_at)
    hard = begun + run.settings.selection.round_timeout_s
    return min(hard, max(begun + round_length(run, roster), flows_until)) - now


def lease_length(run: Run, devices: Collection[str]) -> float:
    """How long a lease lasts: max(60 s, four times the slowest of these devices' medians), at most a round's time-out.

    Devices of unknown speed have the whole time-out. In a synchronous run none ends before the straggler deadline,
    since nobody waits for a device without a lease.
    """
    selection = run.settings.selection
    timeout, factor = selection.round_timeout_s, selection.deadline_factor
    is_sync = run.settings.mode == "sync"
    times = [time for device in devices if (time := run.task_time(device)) is not None]
    if len(times) < len(devices) or not times or (is_sync and factor <= 0):
        return timeout
    length = max(_LEASE_MIN_S, _LEASE_FACTOR * max(times))
    if is_sync:
        length = max(length, selection.deadline_min_s, factor * max(times))
    return min(timeout, length)


def flush_at(run: Run, roster: Roster) -> float | None:
    """When a partial buffer is stepped although it is not full.

    Twice the median interval after the last arrival, but not before a median device could have trained once.
    """
    arrivals = list(run.arrivals)
    if len(arrivals) < _MIN_ARRIVALS:
        return None
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    return arrivals[-1] + max(
        _FLUSH_INTERVALS * median(gaps), roster.usual_time() or 0.0, run.settings.strategy.publish_interval_s
    )
