"""An update counts once, however often it arrives: a high-water mark and a window of outcomes for each device."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal

WINDOW: Final = 64
"""Far more than a device's outbox holds."""


@dataclass(frozen=True)
class Outcome:
    """What a receipt said, and says again to a duplicate."""

    outcome: Literal["accepted", "rejected"]
    residual: Literal["keep", "restore", "discard"]
    reason: str = ""
    detail: str = ""


FORGOTTEN: Final = Outcome("accepted", "keep", "duplicate", "this update was settled long ago")


class SettledUpdates:
    """The outcomes of one device's updates in one run."""

    def __init__(self) -> None:
        self._high = -1
        self._outcomes: OrderedDict[int, Outcome] = OrderedDict()

    def find(self, counter: int) -> Outcome | None:
        """The outcome of an update that is settled already."""
        known = self._outcomes.get(counter)
        if known is None and counter <= self._high - WINDOW:
            return FORGOTTEN
        return known

    def settle(self, counter: int, outcome: Outcome) -> None:
        """Remember an outcome."""
        self._outcomes[counter] = outcome
        self._high = max(self._high, counter)
        while len(self._outcomes) > WINDOW:
            self._outcomes.popitem(last=False)
