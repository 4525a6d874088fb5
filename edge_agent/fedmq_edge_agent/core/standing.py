"""How a device stands at a moment, for whoever looks at it: what it does, what hinders it, what it waits for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedmq_edge_agent.core.desk import Desk
from fedmq_edge_agent.core.effects import Train

Doing = Literal["training", "waiting", "working", "resting", "hindered", "offline"]


@dataclass(frozen=True)
class Standing:
    """All of it but what the clock alone changes.

    Attributes:
        state: `training`; `waiting` for a lease, a run or a receipt; `working` at something else (the trainer opens the
            task, or loads a version); `resting`, as its own conditions or its daily budget say; `hindered` by what
            somebody has to mend; `offline`.
        problem: why it does not take part; empty while it does.
        run: the run that is followed; empty: none.
        round: of the newest announcement.
        version: that the trainer holds; None: none yet.
        connected: to the broker.
        coordinator: whether it is there, as far as is known.
        trainer: state of the child.
        failures: of the child, in a row.
        last_failure: the last of them.
        updates_waiting: in the outbox, without a receipt.
        updates_done: trained for the run so far.
    """

    state: Doing
    problem: str
    run: str
    round: int
    version: int | None
    connected: bool
    coordinator: bool | None
    trainer: str
    failures: int
    last_failure: str
    updates_waiting: int
    updates_done: int


def standing(desk: Desk, *, problem: str) -> Standing:
    """How it stands.

    Args:
        desk: the books.
        problem: what the birth certificate says, or would.
    """
    trainer, following, announcement = desk.trainer, desk.following, desk.announcement
    run = "" if following is None else following.run
    kept = desk.ledger.run(run)
    return Standing(
        state=_doing(desk, problem),
        problem=problem,
        run=run,
        round=0 if announcement is None else announcement.round,
        version=None if following is None else following.replica.loaded,
        connected=desk.contact.session is not None,
        coordinator=desk.contact.coordinator_online,
        trainer=trainer.state,
        failures=trainer.failures,
        last_failure=trainer.last_failure,
        updates_waiting=len(desk.outbox),
        updates_done=0 if kept is None else kept.updates_done,
    )


def _doing(desk: Desk, problem: str) -> Doing:
    if isinstance(desk.trainer.request, Train):
        return "training"
    if desk.contact.session is None:
        return "offline"
    if problem and problem in {desk.budget.problem, desk.conditions.problem}:
        return "resting"
    if problem and (desk.trainer.opened is not None or desk.trainer.failures):
        return "hindered"
    return "waiting" if desk.trainer.ready else "working"
