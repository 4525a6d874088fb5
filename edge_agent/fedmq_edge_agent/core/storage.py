"""A disk that does not take what is to be written: what is said of it, what rests meanwhile, and when it is tried.

What was refused has not happened: nothing that relies on it is said, and it is tried again. Meanwhile no lease is
taken, no model fetched and nothing trained; what is durable in the outbox goes on, receipts are heeded, and whatever
changes in the books is written down as soon as that can be done. Old files are given up before the device gives up.
"""

from __future__ import annotations

from fedmq_edge_agent.core.backoff import Backoff, Chance
from fedmq_edge_agent.core.words import size, span
from fedmq_edge_agent.disk_faults import ROOMY, DiskFault

RETRY = Backoff(first_s=2.0, longest_s=300.0)
QUIET_S = 600.0
"""A fault that comes back sooner is the same one, and is tried at ever longer intervals."""


class Storage:
    """Whether the disk takes what is written.

    Args:
        chance: for the jitter of the attempts.
    """

    def __init__(self, *, chance: Chance) -> None:
        self._chance = chance
        self.fault: DiskFault | None = None
        self.problem = ""
        """What is wrong and what to do, for the operator; empty when nothing is."""
        self.since = 0.0
        self.room_bytes = 0
        """As much has to fit before it is tried in earnest."""
        self.books_wait = False
        """The state itself was refused."""
        self.retry_at: float | None = None
        """When the disk is tried next; None: it takes what is written, or is being tried."""
        self._attempts = 0
        self._mended_at: float | None = None

    @property
    def takes(self) -> bool:
        """Whether, as far as is known, the disk takes what is written."""
        return self.fault is None

    def refused(self, fault: DiskFault, detail: str, *, room_bytes: int, now: float) -> bool:
        """Something was not written; whether that is news."""
        news = self.fault is None
        if news:
            self.since = now
            if self._mended_at is None or now - self._mended_at > QUIET_S:
                self._attempts = 0
        if news or fault != self.fault:
            self.problem = detail
        self.fault = fault
        self.room_bytes = max(self.room_bytes, room_bytes)
        if self.retry_at is None:
            self.retry_at = now + RETRY.wait_s(self._attempts, self._chance)
            self._attempts += 1
        return news

    def try_soon(self, *, now: float) -> None:
        """There may be room now."""
        if self.fault is not None:
            self.retry_at = now

    def is_due(self, *, now: float) -> bool:
        """Whether to try the disk now."""
        return self.retry_at is not None and self.retry_at <= now

    def trying(self) -> None:
        """The disk is being tried; the answer is `refused` or `mended`."""
        self.retry_at = None
        self.books_wait = False

    def mended(self, *, now: float) -> str:
        """It takes what is written again; for how long it did not, in words, or "" if it always did."""
        if self.fault is None:
            return ""
        lasted = span(now - self.since)
        self.fault, self.problem, self.retry_at = None, "", None
        self.room_bytes, self.books_wait, self._mended_at = 0, False, now
        return lasted

    def words(self, *, now: float) -> str:
        """What is waited for; empty when nothing is."""
        if self.fault is None:
            return ""
        due = "now" if self.retry_at is None else f"in {span(self.retry_at - now)}"
        room = f" for {size(self.room_bytes)}" if self.room_bytes and self.fault in ROOMY else ""
        return f"{self.problem} (for {span(now - self.since)}; tried again{room} {due})"
