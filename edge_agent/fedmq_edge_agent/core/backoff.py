"""How long to wait before trying again: growing, bounded, and never in step with the rest of the fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Chance = Callable[[], float]
"""Gives a fraction in [0, 1); the core's only source of chance."""


@dataclass(frozen=True)
class Backoff:
    """Waits of about `first_s`, growing by `factor` up to about `longest_s`, each within a fifth of its mean."""

    first_s: float
    longest_s: float
    factor: float = 2.0

    def wait_s(self, attempt: int, chance: Chance) -> float:
        """The wait after attempt number `attempt`, counted from 0."""
        mean = min(self.longest_s, self.first_s * self.factor ** min(attempt, 64))
        return mean * (0.8 + 0.4 * chance())
