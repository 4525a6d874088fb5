"""Recognising packets that come again: each pair of epoch and sequence of a sender is taken once.

A sender numbers what it seals, and says nothing twice under one number. So whatever comes twice was repeated by a
broker, in good faith (QoS 1 delivers at least once) or in bad. What is retained comes again with every subscription and
is judged otherwise: by session, epoch and version.

The window is the one of IPsec (RFC 4303, section 3.4.3): a bit for each of the newest numbers.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from fedmq_protocol.errors import RemoteError

FROM_DEVICE: Final = 1_024
"""How far back from a device's highest number the coordinator remembers: all of them are for it."""
FROM_COORDINATOR: Final = 65_536
"""How far back from the coordinator's highest number a device remembers: most of them are for others."""


class ReplayError(RemoteError):
    """True once, and said before: no offence of the sender's, and without effect."""


class OldEpochError(ReplayError):
    """Of an epoch that is over.

    Attributes:
        epoch: that it is of.
    """

    def __init__(self, epoch: int, newest: int) -> None:
        super().__init__(f"of epoch {epoch}, and {newest} has begun", reason="old-epoch")
        self.epoch = epoch


class ReplayGuard:
    """What one receiver remembers of one sender's packets: a bit for each number in the window.

    Sequences may come with gaps and out of order. Whatever is older than the window counts as seen.

    Args:
        window: how many numbers to remember, back from the highest.
    """

    __slots__ = ("_highest", "_seen", "_window", "epoch")

    def __init__(self, window: int) -> None:
        self.epoch = 0
        self._window = window
        self._highest = 0
        self._seen = 0  # bit i: highest - i

    def advance(self, epoch: int) -> None:
        """The sender has begun this epoch: what is of a lower one is over."""
        if epoch > self.epoch:
            self.epoch, self._highest, self._seen = epoch, 0, 0

    def check(self, epoch: int, sequence: int) -> None:
        """Take a packet whose signature has been verified.

        Raises:
            OldEpochError: what is of later epochs has come.
            ReplayError: `replayed`; nothing is changed.
        """
        if epoch < self.epoch:
            raise OldEpochError(epoch, self.epoch)
        self.advance(epoch)
        back = self._highest - sequence
        if back >= self._window or (back >= 0 and self._seen >> back & 1):
            raise ReplayError(f"packet {sequence} of epoch {epoch} has come before", reason="replayed")
        if back >= 0:
            self._seen |= 1 << back
            return
        self._seen = 1 if -back >= self._window else (self._seen << -back | 1) & _mask(self._window)
        self._highest = sequence


@cache
def _mask(window: int) -> int:
    """So many bits; shared, since a coordinator has a guard for each device."""
    return (1 << window) - 1
