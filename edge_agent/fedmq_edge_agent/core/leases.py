"""Leases: leave to train once, from the announcement's cohort or for this device alone. Only the newest is kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeldLease:
    """Leave to train once, not used yet."""

    run: str
    lease: int
    version: int
    """Train on this version or a newer one."""
    arrived_at: float
    expires_at: float


class Leases:
    """The lease that this device holds, and which ones it has done with."""

    def __init__(self) -> None:
        self.held: HeldLease | None = None
        self.in_training: HeldLease | None = None
        """The one that the last training was for."""
        self._early: HeldLease | None = None
        self._taken: dict[str, int] = {}

    def offer(self, lease: HeldLease, *, committed: int) -> None:
        """Take a lease, unless it, or a newer one, was taken before.

        Args:
            lease: of the followed run.
            committed: the highest lease of the run that an update was committed for.
        """
        known = [committed, self._taken.get(lease.run, 0)]
        if self.held is not None:
            known.append(self.held.lease)
        if lease.lease > max(known):
            self.held = lease

    def keep_early(self, lease: HeldLease) -> None:
        """It overtook the announcement of its run."""
        self._early = lease

    def take_early(self, run: str) -> HeldLease | None:
        """The lease that came before the announcement of `run`."""
        early, self._early = self._early, None
        return early if early is not None and early.run == run else None

    def begin(self) -> HeldLease:
        """Training begins for the held lease."""
        lease = self.done()
        self.in_training = lease
        return lease

    def done(self) -> HeldLease:
        """The held lease is used, given back, or run out."""
        lease = self.held
        assert lease is not None
        self._taken[lease.run] = lease.lease
        self.held = None
        return lease

    def begin_again(self, run: str) -> None:
        """The training did not come about, through no fault of the lease; a newer one goes before."""
        if self.held is None and self.in_training is not None and self.in_training.run == run:
            self.held = self.in_training

    def drop(self) -> None:
        """The run is not followed any more."""
        self.held = None
