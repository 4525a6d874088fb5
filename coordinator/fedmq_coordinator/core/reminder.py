"""Saying the announcement again while nobody is at work: brokers acknowledge messages that they then drop."""

from __future__ import annotations

from typing import Final

_FIRST_S: Final = 60.0
_LONGEST_S: Final = 3_600.0


class Reminder:
    """When it is time, ever less often.

    Devices that know of a run ask after it by themselves. Those that have heard the end of the last one wait without a
    word: where the next one's announcement is lost, and what they have said last as well, nobody would ever speak.
    """

    def __init__(self) -> None:
        self.due_at: float | None = None
        """In seconds since the epoch; None: there is nothing to remind of."""
        self._wait_s = _FIRST_S

    def is_due(self, *, waits: bool, now: float) -> bool:
        """Whether to say it now; if so, the next time is set.

        Args:
            waits: whether a run waits, and no device is at work on it.
            now: seconds since the epoch.
        """
        if not waits:
            self.due_at = None
            return False
        if self.due_at is None:
            self._wait_s = _FIRST_S
        elif now < self.due_at:
            return False
        else:
            self._wait_s = min(2 * self._wait_s, _LONGEST_S)
        is_due = self.due_at is not None
        self.due_at = now + self._wait_s
        return is_due
