"""What every strategy is: weigh an update, say when the buffer is ready, scale the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedmq_coordinator.core.settings import RunSettings


@dataclass(frozen=True)
class Submission:
    """What a strategy sees of an update."""

    num_examples: int
    staleness: int
    """Published versions between the one that the device trained on and the newest one."""


@dataclass(frozen=True)
class Rejection:
    """Why an update does not count."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Buffer:
    """What has been folded since the last step."""

    num_updates: int
    total_weight: float


class Strategy(Protocol):
    """A pure rule."""

    @property
    def max_staleness(self) -> int:
        """The age in published versions from which on updates are refused."""
        ...

    def accept(self, submission: Submission) -> float | Rejection:
        """The weight to fold the update in with, or why it does not count."""
        ...

    def ready(self, buffer: Buffer) -> bool:
        """Whether a step is due for the number of updates alone. Deadlines are the round machine's."""
        ...

    def scale(self, buffer: Buffer) -> float:
        """The step is this times the accumulator, the sum of weight * update."""
        ...


def too_stale(submission: Submission, max_staleness: int) -> Rejection | None:
    """The rule that all strategies share."""
    if submission.staleness <= max_staleness:
        return None
    return Rejection(
        "too-old",
        f"trained {submission.staleness} versions ago; this run takes updates up to {max_staleness} old",
    )


def max_staleness(settings: RunSettings, versions_per_task: float) -> int:
    """The setting, or enough that a device ten times slower than the median is heard, with a margin of two.

    Args:
        settings: the run's.
        versions_per_task: how many versions appear while a median device trains once.
    """
    if settings.strategy.max_staleness is not None:
        return settings.strategy.max_staleness
    return round(20 * max(1.0, versions_per_task))
