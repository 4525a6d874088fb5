"""Saying the announcement again where nothing comes of a run: brokers acknowledge messages that they then drop."""

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
        self._run: str | None = None
        self._wait_s = _FIRST_S

    def is_due(self, run: str | None, *, now: float) -> bool:
        """Whether to say it now.

        Args:
            run: of which nothing comes; None if there is none.
            now: seconds since the epoch.
        """
        if run is None or run != self._run:
            self._run, self._wait_s = run, _FIRST_S
            self.due_at = None if run is None else now + _FIRST_S
        return self.due_at is not None and now >= self.due_at

    def said(self, *, now: float) -> None:
        """It was, for whatever reason: the next time is set."""
        if self.due_at is None:
            return
        if now >= self.due_at:
            self._wait_s = min(2 * self._wait_s, _LONGEST_S)
        self.due_at = now + self._wait_s
