"""What a device sends and receives in a day, and whether what comes next still fits.

A day is one of UTC. A device whose clock was never set, or has been set back, counts 24 hours of running instead, over
restarts too. What is counted are the bytes on the MQTT socket, both ways. Nothing that would not fit is begun: the
device rests until the day is over, stays connected meanwhile, and says so. Its keep-alives go on; a reserve is kept for
them.
"""

from __future__ import annotations

from math import inf
from typing import Final

from fedmq_edge_agent.core.state import Spent
from fedmq_edge_agent.core.words import size, span

DAY_S: Final = 86_400.0
SANE_CLOCK_S: Final = 1_704_067_200.0
"""2024 has begun; a clock that shows less was never set."""
RESERVE: Final = 20
"""One part in so many of the limit is kept for keep-alives, presence and receipts, within the next two bounds."""
KEEPALIVE_BYTES: Final = 12_000
"""What keep-alives take in a day, one in 30 s; no less is kept."""
MAX_RESERVE: Final = 32_768
KEEP_STEP: Final = 100
"""The count is written down whenever one part in so many of the limit was used since; a crash forgets no more."""
KEEP_BYTES: Final = 1 << 20
"""Likewise without a limit."""
KEEP_S: Final = 3_600.0
"""A rest without a clock is written down so often; a crash forgets no more of it."""


class Budget:
    """Counts, and judges.

    Args:
        limit: bytes a day; None: as many as it takes.
        spent: what the last commit knew.
    """

    def __init__(self, limit: int | None, spent: Spent) -> None:
        self.limit = limit
        self.problem = ""
        """Why the device rests, in words for the operator; empty while it does not."""
        self._day = spent.day
        self._today = spent.today
        self._sent = spent.sent
        self._received = spent.received
        self._ran_s = spent.ran_s
        self._kept = spent
        self._seen = (0, 0)
        self._now = 0.0
        self._ends_at: float | None = None
        """When the day is over, by the clock of `now`."""
        self._by_clock = False
        """The day is the one that the device's clock shows."""
        self._kept_at = 0.0

    @property
    def resting(self) -> bool:
        """Whether nothing that costs much is begun before the day is over."""
        return bool(self.problem)

    @property
    def spent(self) -> Spent:
        """The count as it stands."""
        return Spent(
            day=self._day, today=self._today, sent=self._sent, received=self._received, ran_s=self._ran_s
        )

    @property
    def received(self) -> int:
        """Bytes received since the state was made."""
        return self._received

    @property
    def left(self) -> int | None:
        """Bytes that may still be planned with today; None: there is no limit."""
        if self.limit is None:
            return None
        return max(0, self.limit - self._reserve - self._today)

    @property
    def _reserve(self) -> int:
        assert self.limit is not None
        return min(max(self.limit // RESERVE, KEEPALIVE_BYTES), MAX_RESERVE)

    @property
    def worth_keeping(self) -> bool:
        """Whether so much has been counted since the last commit that it should be written down."""
        step = KEEP_BYTES if self.limit is None else max(1, self.limit // KEEP_STEP)
        kept = self._kept
        much = self._sent + self._received - kept.sent - kept.received >= step
        anew = self._day != kept.day or self._today < kept.today
        return much or anew or (self.resting and self._now >= self._keep_at)

    @property
    def _keep_at(self) -> float:
        """When the running time is worth keeping; never while a clock tells what day it is."""
        return inf if self._by_clock else self._kept_at + KEEP_S

    def keep(self) -> Spent:
        """The count, for a commit that is made now."""
        self._ran_s = 0
        if self._ends_at is not None and not self._by_clock:
            self._ran_s = int(self._now + DAY_S - self._ends_at)
        self._kept, self._kept_at = self.spent, self._now
        return self._kept

    def next_deadline(self) -> float | None:
        """When a rest is over, or worth writing down."""
        if not self.resting or self._ends_at is None:
            return None
        return min(self._ends_at, self._keep_at) if self._keep_at > self._now else self._ends_at

    def count(self, *, sent: int, received: int, clock_s: float, now: float) -> None:
        """Take in what the socket's counters show.

        Args:
            sent: bytes sent since the agent started.
            received: likewise.
            clock_s: seconds since 1970 as the device believes; it may be wrong, and may jump.
            now: the time that only grows.
        """
        more_sent, more_received = sent - self._seen[0], received - self._seen[1]
        self._seen, self._now = (sent, received), now
        self._turn_day(clock_s, now)
        self._today += more_sent + more_received
        self._sent += more_sent
        self._received += more_received
        if self.limit is not None and not self.resting and self.left == 0:
            self.rest("")

    def _turn_day(self, clock_s: float, now: float) -> None:
        if self._ends_at is None:
            self._ends_at, self._kept_at = now + DAY_S - self._ran_s, now
        today = int(clock_s // DAY_S) if clock_s >= SANE_CLOCK_S else 0
        if 0 < today == self._day or (today and not self._day):
            # The clock agrees with what is counted; or it has been set at last, and what was counted is today's.
            self._day = today
            self._ends_at, self._by_clock = now + DAY_S - clock_s % DAY_S, True
        elif today > self._day or now >= self._ends_at:
            grew = today > self._day
            self._day, self._today = max(today, self._day), 0
            self._ends_at, self._by_clock = now + (DAY_S - clock_s % DAY_S if grew else DAY_S), grew
            self.problem = ""
        else:
            self._by_clock = False

    def fits(self, cost: int, what: str) -> bool:
        """Whether something may be begun today; if not, the device rests from here on.

        Args:
            cost: bytes that it is expected to take, both ways.
            what: it, for the operator.
        """
        left = self.left
        if self.resting:
            return False
        if left is None or cost <= left:
            return True
        self.rest(f"{what} takes about {size(cost)}")
        return False

    def rest(self, why: str) -> None:
        """Begin nothing before the day is over."""
        assert self.limit is not None
        assert self._ends_at is not None
        used = f"{size(self._today)} of the daily budget of {size(self.limit)} are used"
        ends = "at 00:00 UTC" if self._by_clock else f"in {span(self._ends_at - self._now)}"
        self.problem = f"{used}{', and ' if why else ''}{why}; back {ends}"
