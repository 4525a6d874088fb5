"""FedBuff: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation (arXiv:2106.06639), algorithm 1.

K arrivals make a step. The paper divides the sum of s(t) D by K; here weights are n_i s(t) over their sum, so that a
buffer full of late updates makes a step of the same length, and device sizes count as in FedAvg.

While each of M devices trains once, M / K steps are taken, each along the whole average. With a step of 1 they add up
to more than a loop with that delay bears: ten devices and K = 2 diverge within seconds, compressed or not. So the step
is 1.2 K / M unless it is set.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmq_coordinator.core.settings import RunSettings, StrategySettings
from fedmq_coordinator.core.strategies.base import Buffer, Rejection, Submission, max_staleness, too_stale
from fedmq_coordinator.core.strategies.staleness import staleness_weight

_MIN_BUFFER = 2
_MAX_BUFFER = 10
_IN_FLIGHT_PER_SLOT = 2
_GAIN = 1.2


@dataclass(frozen=True)
class FedBuff:
    """A buffer of K updates is a step."""

    settings: StrategySettings
    server_lr: float
    buffer_size: int
    max_staleness: int

    @classmethod
    def from_settings(cls, settings: RunSettings, in_flight: int) -> FedBuff:
        size = settings.strategy.buffer_size or min(
            _MAX_BUFFER, max(_MIN_BUFFER, in_flight // _IN_FLIGHT_PER_SLOT)
        )
        size = min(size, max(1, in_flight))
        server_lr = settings.strategy.server_lr or min(1.0, _GAIN * size / in_flight)
        return cls(
            settings.strategy, server_lr, size, max_staleness(settings, versions_per_task=in_flight / size)
        )

    def accept(self, submission: Submission) -> float | Rejection:
        return too_stale(submission, self.max_staleness) or (
            submission.num_examples * staleness_weight(submission.staleness, self.settings)
        )

    def ready(self, buffer: Buffer) -> bool:
        return buffer.num_updates >= self.buffer_size

    def scale(self, buffer: Buffer) -> float:
        return self.server_lr / buffer.total_weight
