"""FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks (arXiv:1602.05629), algorithm 1.

In delta form: w += eta * sum_i (n_i s_i / sum_j n_j s_j) D_i, with D_i = w_i - w. An update of the round itself has
staleness 0 and s = 1, which is the paper's rule; one that comes late counts in the next round with s < 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedmq_coordinator.core.settings import CompressionSettings, RunSettings, StrategySettings
from fedmq_coordinator.core.strategies.base import Buffer, Rejection, Submission, max_staleness, too_stale
from fedmq_coordinator.core.strategies.staleness import staleness_weight
from fedmq_protocol.codecs import CodecSpec

_SPARSE_LR: Final = 1.6
_SPARSE_BELOW: Final = 0.1


def _is_sparse(settings: CompressionSettings) -> bool:
    """Whether most of a change waits in error feedback, on the devices and at the coordinator."""
    up, down = CodecSpec(settings.up, settings.density), CodecSpec(settings.down, settings.down_density)
    return up.sparse and down.sparse and max(up.density, down.density) < _SPARSE_BELOW


@dataclass(frozen=True)
class FedAvg:
    """Average weighted by examples; the round machine decides when the round is over."""

    settings: StrategySettings
    server_lr: float
    max_staleness: int

    @classmethod
    def from_settings(cls, settings: RunSettings, in_flight: int) -> FedAvg:
        """Out of a run's settings; how many devices train at once plays no part."""
        del in_flight
        server_lr = settings.strategy.server_lr or (_SPARSE_LR if _is_sparse(settings.compression) else 1.0)
        return cls(settings.strategy, server_lr, max_staleness(settings, versions_per_task=1.0))

    def accept(self, submission: Submission) -> float | Rejection:
        return too_stale(submission, self.max_staleness) or (
            submission.num_examples * staleness_weight(submission.staleness, self.settings)
        )

    def ready(self, buffer: Buffer) -> bool:
        del buffer
        return False

    def scale(self, buffer: Buffer) -> float:
        return self.server_lr / buffer.total_weight
