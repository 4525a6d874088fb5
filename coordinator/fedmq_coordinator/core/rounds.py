"""The round machine's decisions for synchronous runs: when a round opens, with whom, and when it closes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedmq_coordinator.core.roster import Roster
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.selection import aim, choose
from fedmq_coordinator.core.timing import round_length


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


def decide(run: Run, roster: Roster, *, now: float, resumed_at: float, flows_until: float = 0.0) -> Decision:
    """What to do with a synchronous run now.

    Args:
        run: an active run whose first version is published.
        roster: the devices as they are now.
        now: seconds since the epoch.
        resumed_at: when this coordinator started; waiting starts anew then.
        flows_until: so long members may be waiting for their turn to send, and are no stragglers.
    """
    if not run.round_open:
        following = next_round(run, roster)
        return following if following.devices else Wait(None)
    settings = run.settings.selection
    length = round_length(run, roster)
    waited_for = roster.is_any_awaited(within_s=length)
    enough = run.accumulator.num_updates >= settings.min_updates
    if roster.num_answered >= run.goal and enough:
        return CloseRound("goal" if run.goal < len(run.members) else "all")
    begun = max(run.opened_at, resumed_at)
    soft, hard = begun + length, begun + settings.round_timeout_s
    soft = max(soft, flows_until)
    if enough and now >= min(soft, hard) and (waited_for or roster.num_missing):
        return CloseRound("timeout" if now >= hard else "deadline")
    if enough and not waited_for:
        return CloseRound("all")
    if now >= hard and run.accumulator.num_updates > 0:
        return CloseRound("timeout")
    if not waited_for or now >= hard:
        if roster.free:
            return OpenRound(choose(run, roster.free, max(1, run.goal - len(run.answered))), run.goal)
        return Wait(hard if now < hard else None)
    return Wait(soft if now < soft else hard if now < hard else None)


def next_round(run: Run, roster: Roster) -> OpenRound:
    """Whom the next round is for; nobody if it has to wait, or if all rounds are done."""
    settings = run.settings.selection
    num_available, free = len(roster.available), roster.free
    if run.round >= run.settings.rounds or num_available < settings.min_available_devices or not free:
        return OpenRound([], 0)
    goal = min(aim(run, num_available), len(free))
    selected = choose(run, free, math.ceil(goal * settings.over_selection))
    return OpenRound(selected, goal)
