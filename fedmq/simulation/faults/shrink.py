"""From a history that breaks to a smaller one that breaks likewise: fewer faults, then fewer runs and devices.

Delta debugging (Zeller and Hildebrandt 2002, ddmin) over the plan's faults: since a fault counts what it strikes at,
the others mean nearly the same without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from fedmq.simulation.faults.history import History, Outcome
from fedmq.simulation.faults.plan import Fault, Plan

T = TypeVar("T")
_MOST_TRIES: Final = 300


def shrink(plan: Plan, invariant: str, *, tries: int = _MOST_TRIES) -> Outcome | None:
    """How the smallest plan goes that was found to break `invariant` still; None: as it stands, this one does not.

    Args:
        plan: breaks it.
        invariant: which.
        tries: histories to spend at most.
    """
    left = tries

    def breaks(smaller: Plan) -> bool:
        nonlocal left
        if left <= 0:
            return False
        left -= 1
        broken = History(smaller, lengthen=False).run().broken
        return broken is not None and broken.invariant == invariant

    if not breaks(plan):  # a run that is added when others are over is asked for at once here
        return None
    plan = plan.but(faults=tuple(fewest(plan.faults, lambda faults: breaks(plan.but(faults=tuple(faults))))))
    while len(plan.runs) > 1 and breaks(plan.but(runs=plan.runs[:-1])):
        plan = plan.but(runs=plan.runs[:-1])
    for device in plan.devices:
        fewer = tuple(each for each in plan.devices if each is not device)
        if len(fewer) > 1 and breaks(smaller := plan.but(devices=fewer, faults=_without(plan, device.name))):
            plan = smaller
    return History(plan, lengthen=False).run()


def fewest(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """A sublist of which nothing can be left out so that `holds` stays true; ddmin."""
    kept, parts = list(items), 2
    while kept:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            if holds(fewer):
                kept, parts = fewer, max(2, parts - 1)
                break
        else:
            if parts >= len(kept):
                break
            parts = min(len(kept), 2 * parts)
    return kept


def _without(plan: Plan, device: str) -> tuple[Fault, ...]:
    return tuple(fault for fault in plan.faults if fault.who != device)
