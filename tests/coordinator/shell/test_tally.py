"""Numbers since the start are those of the facts that were journaled since."""

from __future__ import annotations

from typing import Any, get_args

from fedmq_coordinator.core.facts import KINDS, ClosedBy, Fact
from fedmq_coordinator.shell.tally import Tally


def fact(kind: str, **fields: Any) -> Fact:
    return KINDS[kind].model_construct(at=0.0, **fields)


def test_facts_are_counted_by_what_they_say() -> None:
    tally = Tally()
    assert tally.view().steps == dict.fromkeys(get_args(ClosedBy), 0)
    for why in ("deadline", "goal", "deadline"):
        tally.count(fact("StepTaken", closed_by=why))
    tally.count(fact("UpdateAccepted"))
    for reason in ("norm", "norm", "stale"):
        tally.count(fact("UpdateRejected", reason=reason))
    tally.count(fact("EpochBegun"))
    view = tally.view()
    assert {why: number for why, number in view.steps.items() if number} == {"deadline": 2, "goal": 1}
    assert (view.updates_accepted, view.updates_rejected) == (1, {"norm": 2, "stale": 1})
