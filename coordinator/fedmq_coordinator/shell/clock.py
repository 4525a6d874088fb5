"""Seconds since the epoch that never go back."""

from __future__ import annotations

import time


class Clock:
    """The wall clock at the start, and the monotonic clock from then on.

    Args:
        not_before: where the journal ends; boards without a battery wake up in the past.
    """

    def __init__(self, *, not_before: float = 0.0) -> None:
        self._offset = max(time.time(), not_before) - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic()
