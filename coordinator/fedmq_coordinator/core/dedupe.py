"""An update counts once, however often it arrives: a high-water mark and a window of outcomes for each device."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

WINDOW: Final = 64
"""Far more than a device's outbox holds."""
DIGEST_BYTES: Final = 8
"""Of a payload's hash: by accident no two of one device's are alike in so many."""


@dataclass(frozen=True)
class Outcome:
    """What a receipt said, and says again to a duplicate."""

    outcome: Literal["accepted", "rejected"]
    residual: Literal["keep", "restore", "discard"]
    reason: str = ""
    detail: str = ""


ACCEPTED: Final = Outcome("accepted", "keep")
"""Nearly every outcome, held once."""
FORGOTTEN: Final = Outcome("accepted", "keep", "duplicate", "this update was settled long ago")


NUMBER_USED: Final = Outcome(
    "rejected", "restore", "number-used", "another update of this device had this number, and is settled"
)


class SettledUpdates:
    """The outcomes of one device's updates in one run."""

    def __init__(self) -> None:
        self._high = -1
        self._outcomes: OrderedDict[int, Outcome] = OrderedDict()

    @property
    def newest(self) -> int:
        """The highest number that is settled."""
        return self._high

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

    def plain(self) -> list[object]:
        """As values for msgpack: the mark, and runs of consecutive counters that were accepted, or one refusal each."""
        runs: list[list[object]] = []
        expected = None
        for counter, outcome in self._outcomes.items():
            if outcome is not ACCEPTED and outcome != ACCEPTED:
                refused = [outcome.outcome, outcome.residual, outcome.reason, outcome.detail]
                runs.append([counter, 1, refused])
                expected = None
            elif counter == expected:
                expected = counter + 1
                runs[-1][1] = cast("int", runs[-1][1]) + 1
            else:
                runs.append([counter, 1])
                expected = counter + 1
        return [self._high, runs]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> SettledUpdates:
        """What `plain` wrote, in the same order."""
        made = cls()
        made._high, runs = plain
        for first, count, *refused in runs:
            outcome = Outcome(*refused[0]) if refused else ACCEPTED
            made._outcomes.update(dict.fromkeys(range(first, first + count), outcome))
        return made
