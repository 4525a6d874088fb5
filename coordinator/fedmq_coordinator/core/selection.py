"""Who trains next. Random choices come from the run's seed and the lease's number, so a replay chooses the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedmq_coordinator.core.devices import Device
from fedmq_coordinator.core.run import Run
from fedmq_protocol.sampling import sample


def is_eligible(device: Device, run: Run) -> bool:
    """Whether a device could train this run: online, with the run's task as it is pinned, no problem and no flood."""
    return device.online and not device.problem and not device.flood and device.offers(run.task)


def choose(run: Run, candidates: Sequence[str], count: int) -> list[str]:
    """`count` of the candidates, by chance."""
    if count >= len(candidates):
        return list(candidates)
    generator = np.random.default_rng([run.settings.seed, run.lease + 1])
    picked = generator.choice(len(candidates), size=count, replace=False)
    return sorted(candidates[index] for index in picked)


def choose_by_rule(
    run: Run, candidates: Sequence[str], count: int, *, round_number: int, lease: int
) -> tuple[float, bytes, list[str]]:
    """About `count` of the candidates by the rule that devices apply too: its rate, its seed, and whom it takes."""
    seed = run.settings.seed.to_bytes(8, "big") + lease.to_bytes(8, "big")
    rate = min(1.0, count / len(candidates))
    return rate, seed, [device for device in candidates if sample(seed, round_number, device) < rate]


def aim(run: Run, num_available: int) -> int:
    """How many updates a round aims at, or how many devices train at once: the fraction of those available."""
    return max(1, math.ceil(run.settings.selection.fraction_train * num_available))
