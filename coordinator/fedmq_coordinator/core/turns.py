"""Updates are admitted by credit: of a large cohort, no more devices send at once than the coordinator has room for.

A broker keeps what the coordinator has not taken yet in a queue, and drops what goes beyond the queue's bound although
it has acknowledged it. So where more devices are at work than `MAX_UNDER_WAY`, they send in turns. Devices stand on a
ring, each at the hash of its name, and a word to all of them (`Turn`) says which arc of the ring may send:

    room     half of those invited have answered: the arc goes on behind its end, to as many as there is room for
    quiet    hardly any of them answer: they are still training, and have another turn when the arc comes round
    all      there is room for as many as are left: the arc is the whole ring

In a small fleet nothing of this is ever said, and an update is one message and its receipt, as it always was. In a
large one it costs a word for every `MAX_UNDER_WAY / 2` updates, and nothing for each: no offer, no answer to it.

None of this is journaled. A start begins with a turn before it announces anything, and reckons with everybody whose
receipt may be lost; devices that have heard of turns wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from fedmq_coordinator.core.roster import Roster
from fedmq_coordinator.core.run import Run
from fedmq_protocol.limits import RING
from fedmq_protocol.messages import Turn
from fedmq_protocol.sampling import place

MAX_UNDER_WAY: Final = 400
"""Updates. Mosquitto queues 1,000 messages for a client unless it is told otherwise. Should the coordinator stand
still, and take what it has not read for quiet, as many again may come; what else is said has the rest."""
MAX_UNDER_WAY_BYTES: Final = 16 * 1024 * 1024
QUIET_S: Final = 1.0
"""Whoever is ready has sent by then. Doubled while nobody is."""
_HARDLY: Final = 8
"""One in so many."""
MAX_QUIET_S: Final = 8.0

_place = lru_cache(65_536)(place)


class Turns:
    """Whose turn it is.

    Args:
        max_under_way: so many updates at most may be on their way at once.
        max_bytes: likewise, so many bytes of them.
    """

    def __init__(self, *, max_under_way: int = MAX_UNDER_WAY, max_bytes: int = MAX_UNDER_WAY_BYTES) -> None:
        self._max_under_way = max_under_way
        self._max_bytes = max_bytes
        self._limits: dict[str, int] = {}
        """Of the active run: so many updates at once."""
        self._said: Turn | None = None
        """What devices were told last in this epoch; None: nothing, so that they send as they like."""
        self._invited: set[str] = set()
        """Who may have something under way."""
        self._num_heard = 0
        """Of them, since it was last looked at."""
        self._num_waiting = 0
        self._passed = 0
        """So much of the ring has had its turn since somebody was heard."""
        self._unsure: set[str] = set()
        """Those who may not have got their receipts, and say everything again."""
        self._quiet_s = QUIET_S
        self._quiet_at: float | None = None
        self._was_late = False
        """It was looked too late the last time."""
        self.flows_until = 0.0
        """So long those who have not answered may still be waiting for their turn, and are no stragglers."""

    def connected(self, run: Run | None) -> None:
        """The broker has a new connection of ours: receipts that were on their way are lost."""
        self._limits.clear()  # the broker may take other packets now
        if self._said is not None:  # whether it came nobody knows: it is said again, or something else
            self._said = self._said.model_copy(update={"span": 0})
        self._quiet_at, self._quiet_s = None, QUIET_S
        self._invited.clear()
        self._unsure = set() if run is None else run.answered - run.leases.keys()

    def heard(self, device: str, *, now: float) -> None:
        """An update of the device came, or word that there will be none."""
        self._num_heard += device in self._invited
        self._passed = 0
        if self._quiet_at is not None:
            self.flows_until = max(self.flows_until, now + 2 * self._quiet_s)
        self._invited.discard(device)
        self._unsure.discard(device)

    @property
    def next_deadline(self) -> float | None:
        """When `settle` is due if nobody says anything."""
        return self._quiet_at

    @property
    def words(self) -> str:
        """How many wait for credit, for the operator; empty where nobody does."""
        if self._quiet_at is None:
            return ""
        return f"updates wait for credit: {len(self._invited)} of {self._num_waiting} devices may send now"

    def settle(
        self, run: Run | None, roster: Roster | None, *, update_bytes: Callable[[Run], int], now: float
    ) -> Turn | None:
        """Whose turn it is now.

        Args:
            run: the active one.
            roster: its devices, as they are now.
            update_bytes: what an update of a run may take on the wire, in one message.
            now: seconds since the epoch.

        Returns:
            What devices are to be told; None: nothing new.
        """
        if run is None or roster is None:
            return self._everybody(now=now)
        if run.id not in self._limits:
            by_bytes = self._max_bytes // max(1, update_bytes(run))
            self._limits = {run.id: max(1, min(self._max_under_way, by_bytes))}
        limit = self._limits[run.id]
        if roster.num_at_work + len(self._unsure) <= limit:
            return self._everybody(now=now)
        if self._quiet_at is not None and 2 * len(self._invited) > limit and not self._lapses(limit, now=now):
            return None
        at_work = (device for device in run.leases if roster.is_there(device))
        return self._invite({*at_work, *self._unsure}, limit, now=now)

    def _lapses(self, limit: int, *, now: float) -> bool:
        """Whether those who were invited and have not answered have nothing to send yet."""
        if self._quiet_at is None or now < self._quiet_at:
            return False
        num_heard, self._num_heard = self._num_heard, 0
        if num_heard:
            self._quiet_s = QUIET_S
        late = now > self._quiet_at + QUIET_S / 2 and not self._was_late
        if num_heard > limit // _HARDLY or late:  # it was we who stood still: look once more
            self._quiet_at, self._was_late = now + QUIET_S, late
            return False
        self._was_late = False
        if not num_heard:
            self._quiet_s = min(MAX_QUIET_S, 2 * self._quiet_s)
        self._unsure -= self._invited
        self._invited.clear()
        return True

    def _invite(self, waiting: set[str], limit: int, *, now: float) -> Turn | None:
        """Give the turn to as many as there is room for, behind those who had it last."""
        if len(waiting) <= limit:
            return self._everybody(now=now)
        self._invited &= waiting
        begin = 0 if self._said is None else (self._said.start + self._said.span) % RING
        ring = sorted(((_place(device) - begin) % RING, device) for device in waiting)
        num_new = limit - len(self._invited)
        span = max(1, ring[num_new][0])
        self._invited |= {device for offset, device in ring[:num_new] if offset < span}
        self._num_waiting = len(waiting)
        self._quiet_at = now + self._quiet_s
        if self._passed < RING:  # who stands on this arc may have been ready for long
            self.flows_until = max(self.flows_until, self._quiet_at + QUIET_S)
        self._passed += span
        self._said = Turn(start=begin, span=span)
        return self._said

    def _everybody(self, *, now: float) -> Turn | None:
        """There is room for all who are left."""
        if self._quiet_at is not None:
            self.flows_until = max(self.flows_until, now + 2 * QUIET_S)
        self._invited.clear()
        self._quiet_at, self._quiet_s, self._num_heard = None, QUIET_S, 0
        if self._said is None or self._said.span == RING:
            return None
        self._said = Turn(start=self._said.start, span=RING)
        return self._said
