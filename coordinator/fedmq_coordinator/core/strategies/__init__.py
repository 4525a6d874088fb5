"""How updates become steps. Adding a strategy is one file and one line in `STRATEGIES`.

A strategy sees of an update what it needs to weigh it, and of the buffer what it needs to close it. Clipping, privacy,
validation and the model's arithmetic stand elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.strategies.base import Buffer, Rejection, Strategy, Submission
from fedmq_coordinator.core.strategies.fedasync import FedAsync
from fedmq_coordinator.core.strategies.fedavg import FedAvg
from fedmq_coordinator.core.strategies.fedbuff import FedBuff
from fedmq_protocol.messages import Mode

STRATEGIES: Final[dict[Mode, Callable[[RunSettings, int], Strategy]]] = {
    "sync": FedAvg.from_settings,
    "fedasync": FedAsync.from_settings,
    "fedbuff": FedBuff.from_settings,
}


def make_strategy(settings: RunSettings, *, in_flight: int) -> Strategy:
    """The strategy of a run.

    Args:
        settings: the run's.
        in_flight: how many devices train at once; FedBuff sizes its buffer by it.
    """
    return STRATEGIES[settings.mode](settings, in_flight)


__all__ = ["STRATEGIES", "Buffer", "Rejection", "Strategy", "Submission", "make_strategy"]
