"""Weights of late updates, s(t), after Xie, Koyejo and Gupta, Asynchronous Federated Optimization (arXiv:1903.03934).

t counts published versions from the one that the device trained on. All have s(0) = 1 and never grow.
"""

from __future__ import annotations

from fedmq_coordinator.core.settings import StrategySettings


def staleness_weight(staleness: int, settings: StrategySettings) -> float:
    """s(t) by the setting: constant, polynomial (1 + t)^-a, or hinge (section 5.2 of the paper)."""
    match settings.staleness:
        case "constant":
            return 1.0
        case "polynomial":
            return float((1 + staleness) ** -settings.staleness_exponent)
        case "hinge":
            if staleness <= settings.hinge_delay:
                return 1.0
            return 1.0 / (settings.hinge_slope * (staleness - settings.hinge_delay) + 1.0)
