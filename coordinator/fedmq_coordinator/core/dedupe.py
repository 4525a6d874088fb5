"""An update counts once, however often it arrives: a high-water mark and a window of outcomes for each device."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, Literal

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
    """The outcomes of one device's updates in one run.

    A device that lost its disk, or got an older one back, may give a number again, under a lease that it had trained
    for already, or a later one. Such an update is another one than the first, as its payload's hash tells: its sender
    learns that, and puts the mass back.
    """

    def __init__(self) -> None:
        self._high = -1
        self._outcomes: OrderedDict[int, Outcome] = OrderedDict()
        self._digests: dict[int, bytes] = {}
        """Of their payloads, as far as the journal has them."""

    def __len__(self) -> int:
        """Of how many updates the outcome is known."""
        return len(self._outcomes)

    def find(self, counter: int, sha256: bytes) -> Outcome | None:
        """The outcome of an update that is settled already.

        Args:
            counter: its number.
            sha256: of its payload.
        """
        known = self._outcomes.get(counter)
        if known is None:
            return FORGOTTEN if counter <= self._high - WINDOW else None
        digest = self._digests.get(counter, b"")
        return known if sha256.startswith(digest) else NUMBER_USED

    def settle(self, counter: int, outcome: Outcome, digest: bytes = b"") -> None:
        """Remember an outcome; `digest` is the beginning of the payload's SHA-256, or empty."""
        self._outcomes[counter] = outcome
        self._digests.pop(counter, None)
        if digest:
            self._digests[counter] = digest
        self._high = max(self._high, counter)
        while len(self._outcomes) > WINDOW:
            self._digests.pop(self._outcomes.popitem(last=False)[0], None)

    def plain(self) -> list[object]:
        """As values for msgpack: the mark, and runs of consecutive counters that were accepted, or one refusal each."""
        runs: list[list[Any]] = []
        expected = None
        for counter, outcome in self._outcomes.items():
            digest = self._digests.get(counter, b"")
            if outcome is not ACCEPTED and outcome != ACCEPTED:
                refused = [outcome.outcome, outcome.residual, outcome.reason, outcome.detail]
                runs.append([counter, 1, digest, refused])
                expected = None
            elif counter == expected and bool(digest) == bool(runs[-1][2]):
                runs[-1][1] += 1
                runs[-1][2] += digest
                expected = counter + 1
            else:
                runs.append([counter, 1, digest])
                expected = counter + 1
        return [self._high, runs]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> SettledUpdates:
        """What `plain` wrote, in the same order."""
        made = cls()
        made._high, runs = plain
        for first, count, digests, *refused in runs:
            outcome = Outcome(*refused[0]) if refused else ACCEPTED
            made._outcomes.update(dict.fromkeys(range(first, first + count), outcome))
            for place in range(count if digests else 0):
                made._digests[first + place] = digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
        return made
