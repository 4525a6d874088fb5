"""The round machine's decisions for synchronous runs: when a round opens, with whom, and when it closes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.selection import aim, choose
from fedmq_coordinator.core.timing import is_on_time, round_length


@dataclass(frozen=True)
class OpenRound:
    """Give these devices leases and wait for `goal` updates."""

    devices: list[str]
    goal: int


@dataclass(frozen=True)
class CloseRound:
    """Make a step of what is there."""

    why: Literal["all", "goal", "deadline", "timeout"]


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until`, unless something happens."""

    until: float | None


Decision = OpenRound | CloseRound | Wait


def awaited(run: Run, online: Collection[str]) -> list[str]:
    """Members of the open round that have not answered, are there, and are expected on time."""
    return sorted(
        device
        for device in run.members - run.answered
        if device in online
        and (held := run.leases.get(device)) is not None
        and held.granted_at >= run.opened_at
        and is_on_time(run, device)
    )


def deadline(run: Run, *, resumed_at: float) -> float:
    """When the open round stops waiting for stragglers."""
    return max(run.opened_at, resumed_at) + round_length(run)


def decide(
    run: Run, available: list[str], online: Collection[str], *, now: float, resumed_at: float
) -> Decision:
    """What to do with a synchronous run now.

    Args:
        run: an active run whose first version is published.
        available: the eligible devices, those at work among them.
        online: devices that are connected.
        now: seconds since the epoch.
        resumed_at: when this coordinator started; waiting starts anew then.
    """
    if not run.round_open:
        following = next_round(run, available)
        return following if following.devices else Wait(None)
    settings = run.settings.selection
    waited_for = awaited(run, online)
    enough = run.accumulator.num_updates >= settings.min_updates
    if len(run.answered & run.members) >= run.goal and enough:
        return CloseRound("goal" if run.goal < len(run.members) else "all")
    if not waited_for and enough:
        return CloseRound("all")
    soft = deadline(run, resumed_at=resumed_at)
    hard = max(run.opened_at, resumed_at) + settings.round_timeout_s
    if now >= soft and enough:
        return CloseRound("timeout" if now >= hard else "deadline")
    if now >= hard and run.accumulator.num_updates > 0:
        return CloseRound("timeout")
    if not waited_for or now >= hard:
        fresh = [device for device in available if device not in run.leases]
        if fresh:
            return OpenRound(choose(run, fresh, max(1, run.goal - len(run.answered))), run.goal)
        return Wait(hard if now < hard else None)
    return Wait(soft if now < soft else hard if now < hard else None)


def next_round(run: Run, available: list[str]) -> OpenRound:
    """Whom the next round is for; nobody if it has to wait, or if all rounds are done."""
    settings = run.settings.selection
    free = [device for device in available if device not in run.leases]
    if run.round >= run.settings.rounds or len(available) < settings.min_available_devices or not free:
        return OpenRound([], 0)
    goal = min(aim(run, len(available)), len(free))
    selected = choose(run, free, math.ceil(goal * settings.over_selection))
    return OpenRound(selected, goal)
