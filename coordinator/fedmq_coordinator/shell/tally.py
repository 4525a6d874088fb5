"""What has happened since this coordinator started, in numbers: for whoever watches rates. A restart begins at zero."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel

from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.views import FederationView, RunView


class TallyView(BaseModel):
    """Numbers since the start."""

    steps: dict[str, int]
    """Steps of the model, by what made them due: each that there is, with 0 where it has not happened."""
    updates_accepted: int
    updates_rejected: dict[str, int]
    """By reason."""


class WatchView(BaseModel):
    """All that a monitor asks for, of one moment."""

    federation: FederationView
    run: RunView | None
    """The active run, or else the newest."""
    tally: TallyView


class Tally:
    """Counts facts as they are journaled."""

    def __init__(self) -> None:
        self._steps = dict.fromkeys(get_args(f.ClosedBy), 0)
        self._accepted = 0
        self._rejected: dict[str, int] = {}

    def count(self, fact: f.Fact) -> None:
        match fact:
            case f.StepTaken(closed_by=why):
                self._steps[why] += 1
            case f.UpdateAccepted():
                self._accepted += 1
            case f.UpdateRejected(reason=reason):
                self._rejected[reason] = self._rejected.get(reason, 0) + 1
            case _:
                pass

    def view(self) -> TallyView:
        return TallyView(
            steps=dict(self._steps), updates_accepted=self._accepted, updates_rejected=dict(self._rejected)
        )
