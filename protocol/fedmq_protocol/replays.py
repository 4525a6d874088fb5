"""Recognising packets that come again: each pair of epoch and sequence of a sender is taken once.

A sender numbers what it seals, and says nothing twice under one number. So whatever comes twice was repeated by a
broker, in good faith (QoS 1 delivers at least once) or in bad. What is retained comes again with every subscription and
is judged otherwise: by session, epoch and version.
"""

from __future__ import annotations

from heapq import heappush, heappushpop
from typing import Final

from fedmq_protocol.errors import RemoteError

WINDOW: Final = 256
"""So many sequences are remembered: far more than a broker ever has under way out of order for one receiver."""


class ReplayError(RemoteError):
    """True once, and said before: no offence of the sender's, and without effect."""


class ReplayGuard:
    """What one receiver remembers of one sender's packets.

    Sequences may come with gaps, since a sender speaks to others too, and out of order. The newest ones of the present
    epoch are remembered one by one; whatever is older than all of them counts as seen.

    Args:
        epoch: the highest epoch that is known of this sender.
        window: how many sequences to remember.
    """

    def __init__(self, epoch: int = 0, *, window: int = WINDOW) -> None:
        self.epoch = epoch
        self._window = window
        self._floor = -1
        self._newest: list[int] = []  # a heap, the lowest first
        self._seen: set[int] = set()

    def advance(self, epoch: int) -> None:
        """The sender has begun this epoch: what is of a lower one is over."""
        if epoch > self.epoch:
            self.epoch, self._floor = epoch, -1
            self._newest.clear()
            self._seen.clear()

    def check(self, epoch: int, sequence: int) -> None:
        """Take a packet whose signature has been verified.

        Raises:
            ReplayError: `old-epoch` or `replayed`; nothing is changed.
        """
        if epoch < self.epoch:
            raise ReplayError(f"of epoch {epoch}, and {self.epoch} has begun", reason="old-epoch")
        if epoch == self.epoch and (sequence <= self._floor or sequence in self._seen):
            raise ReplayError(f"packet {sequence} of epoch {epoch} has come before", reason="replayed")
        self.advance(epoch)
        self._seen.add(sequence)
        if len(self._newest) < self._window:
            heappush(self._newest, sequence)
        else:
            self._floor = heappushpop(self._newest, sequence)
            self._seen.remove(self._floor)
