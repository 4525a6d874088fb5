"""The device's contact with broker and coordinator: whether there is any, and when to ask after the announcement."""

from __future__ import annotations

from collections.abc import Hashable

from fedmq_edge_agent.core.backoff import Backoff, Chance
from fedmq_protocol.messages import Status

HELLO = Backoff(first_s=3.0, longest_s=60.0)
SILENCE_S = 300.0
"""A run of which nothing was heard for so long is asked after."""
_SELDOM = 64  # an attempt so late that the wait is the longest


class Contact:
    """Who is there.

    Args:
        chance: for the jitter of the hellos.
    """

    def __init__(self, *, chance: Chance) -> None:
        self.session: int | None = None
        """Of the present connection; None: there is none."""
        self.leaves: int | None = None
        """The session that is to be given up for a higher one."""
        self.since = 0.0
        """When the present connection, or the lack of one, began."""
        self.offline_reason = "not connected yet"
        self.coordinator_online: bool | None = None
        """None: no word of it yet."""
        self.hello_at: float | None = None
        """When the announcement is asked for, if none comes."""
        self.resting = False
        """Nothing is asked for: it takes no part for now."""
        self._chance = chance
        self._attempts = 0
        self._status_seen = (0, 0)
        self._born: Hashable = None

    def connected(self, session: int, *, now: float) -> None:
        """The broker took us; an announcement should come by itself."""
        self.session, self.since, self._born = session, now, None
        self.expect_announcement(now=now)

    def disconnected(self, reason: str, *, now: float) -> None:
        """The broker is out of reach."""
        if self.session is not None:
            self.since = now
        self.session, self.offline_reason = None, reason

    def introduce_again(self) -> None:
        """Whoever listens now may never have heard the birth certificate: no broker need have kept it."""
        self._born = None

    def changed(self, presence: Hashable) -> bool:
        """Whether the birth certificate is to be published: it differs from the last one, or was forgotten.

        Args:
            presence: all that it is made of and that may change.
        """
        changed = presence != self._born
        self._born = presence
        return changed

    # ------------------------------------------------------------------------------ the coordinator

    def status(self, status: Status, epoch: int) -> bool:
        """Take in the coordinator's status; False if it is the late will of an earlier connection."""
        if (epoch, status.session) < self._status_seen:
            return False
        if status.online and (not self.coordinator_online or (epoch, status.session) > self._status_seen):
            self.introduce_again()
        self._status_seen = (epoch, status.session)
        self.coordinator_online = status.online
        return True

    def expect_announcement(self, *, now: float) -> None:
        """One should come by itself; else it is asked for."""
        self.hello_at, self._attempts = now + HELLO.first_s, 0

    def ask_at_once(self, *, now: float) -> None:
        """Something was heard that makes no sense without an announcement."""
        self.hello_at = now

    def announced(self, *, running: bool, now: float) -> None:
        """It came."""
        self.hello_at, self._attempts = None, 0
        if running:
            self.hello_at = now + SILENCE_S * (0.8 + 0.4 * self._chance())

    def next_deadline(self) -> float | None:
        """When to say hello."""
        return None if self.session is None or self.resting else self.hello_at

    def hello_is_due(self, *, now: float) -> bool:
        """Whether to say hello now, and who we are; if so, the next time is set."""
        if self.session is None or self.resting or self.hello_at is None or self.hello_at > now:
            return False
        self._attempts += 1
        self.introduce_again()
        attempt = _SELDOM if self.coordinator_online is False else self._attempts
        self.hello_at = now + HELLO.wait_s(attempt, self._chance)
        return True
