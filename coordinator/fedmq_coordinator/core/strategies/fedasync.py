"""FedAsync: Xie, Koyejo and Gupta, Asynchronous Federated Optimization (arXiv:1903.03934), algorithm 1.

The paper mixes models, w <- (1 - a_t) w + a_t w_i with a_t = alpha * s(t). Here in delta form, w += a_t D_i, which is
the same at t = 0 and does not pull w back to where a late device began.

While each of M devices trains once, M steps are taken that are some M versions late: together alpha sqrt(M) long with
the polynomial's default exponent. Above 1.5 they overshoot, so the step is shortened to that unless it is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

from fedmq_coordinator.core.settings import RunSettings, StrategySettings
from fedmq_coordinator.core.strategies.base import Buffer, Rejection, Submission, max_staleness, too_stale
from fedmq_coordinator.core.strategies.staleness import staleness_weight

_GAIN: Final = 1.5


@dataclass(frozen=True)
class FedAsync:
    """Every arrival is a step; the number of examples plays no part."""

    settings: StrategySettings
    server_lr: float
    max_staleness: int

    @classmethod
    def from_settings(cls, settings: RunSettings, in_flight: int) -> FedAsync:
        strategy = settings.strategy
        server_lr = strategy.server_lr or min(1.0, _GAIN / (strategy.alpha * sqrt(in_flight)))
        return cls(strategy, server_lr, max_staleness(settings, versions_per_task=float(in_flight)))

    def accept(self, submission: Submission) -> float | Rejection:
        return too_stale(submission, self.max_staleness) or (
            self.settings.alpha * staleness_weight(submission.staleness, self.settings)
        )

    def ready(self, buffer: Buffer) -> bool:
        return buffer.num_updates >= 1

    def scale(self, buffer: Buffer) -> float:
        del buffer
        return self.server_lr
