"""Devices that vanish in the middle of their work, at moments that the seed decides."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fedmq_coordinator.core.views import DeviceView

_GIVE_UP_S: Final = 10.0
_TYPICAL_TASK_S: Final = 0.2
_LATEST: Final = 0.7


@dataclass(frozen=True)
class Dropout:
    """One device's end: in this round, or the first after it in which it is at work, so far into its task."""

    device: str
    round: int
    fraction: float


def plan_dropouts(devices: Sequence[str], count: int, *, rounds: int, seed: int) -> list[Dropout]:
    """Choose who vanishes and when: after the first round, and before the last quarter of them."""
    rng = random.Random(f"dropouts {seed}")  # noqa: S311 - a play, not a secret
    latest = max(2, round(rounds * 0.75))
    chosen = rng.sample(list(devices), count)
    return sorted(
        (Dropout(device, rng.randint(2, latest), rng.random() * _LATEST) for device in chosen),
        key=lambda dropout: (dropout.round, dropout.device),
    )


class Reaper:
    """Says whom to kill now."""

    def __init__(self, plan: Iterable[Dropout]) -> None:
        self._plan = list(plan)
        self._armed_at: dict[str, float] = {}

    @property
    def watches_closely(self) -> bool:
        """Whether someone's moment is still to come, so that looking four times a second is not enough."""
        return bool(self._plan)

    def due(
        self, round_number: int, devices: Iterable[DeviceView], *, now: float
    ) -> list[tuple[Dropout, DeviceView]]:
        """Whose moment has come: far enough into a task, or the round passes without one."""
        views = {device.device: device for device in devices}
        found = []
        for dropout in [dropout for dropout in self._plan if dropout.round <= round_number]:
            view = views.get(dropout.device)
            if view is None:
                continue
            armed = self._armed_at.setdefault(dropout.device, now)
            enough = dropout.fraction * (view.task_time_s or _TYPICAL_TASK_S)
            if (view.lease_age_s is not None and view.lease_age_s >= enough) or now - armed > _GIVE_UP_S:
                found.append((dropout, view))
                self._plan.remove(dropout)
        return found
