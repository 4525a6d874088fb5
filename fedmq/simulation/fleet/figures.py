"""What came of a fleet: plain figures, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class VersionFigures:
    """A published version.

    Attributes:
        version: its number.
        at_s: when, since the run was asked for, in virtual seconds.
        up_bytes: that all devices had sent since then.
        down_bytes: likewise received.
        updates: that had counted.
        accuracy: on held-out data; None: not measured.
        loss: likewise.
    """

    version: int
    at_s: float
    up_bytes: int
    down_bytes: int
    updates: int
    accuracy: float | None = None
    loss: float | None = None


@dataclass
class FleetFigures:
    """One mode.

    Attributes:
        mode: which.
        state: of the run at the end, `finished` or what it still was.
        reason: why it ended, or what it waits for.
        joined_s: how long it took until every device was there.
        virtual_s: from the request to the end.
        wall_s: that the simulation took.
        steps: of the simulation.
        versions: in order.
        up_bytes: by all devices, their joining left out.
        down_bytes: likewise.
        up_by_device: quantiles of a device's bytes: least, a quarter, half, three quarters, most.
        down_by_device: likewise.
        staleness: how many updates counted that were so many versions old.
        utilisation: the share of the devices' time in which they trained for an update that came to something.
        trainings: that were begun.
        counted: updates that became part of the model.
        late: of these, updates that were at least a version old.
        refused: by reason.
        cut_short: trainings that a power cut ended.
        in_flight: trainings and updates under way at the end.
        returned: leases given back, by reason.
        target: the accuracy that was asked for.
        target_s: when it was reached.
        target_bytes: both ways until then.
    """

    mode: str
    state: str = ""
    reason: str = ""
    joined_s: float = 0.0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    steps: int = 0
    versions: list[VersionFigures] = field(default_factory=list)
    up_bytes: int = 0
    down_bytes: int = 0
    up_by_device: list[float] = field(default_factory=list)
    down_by_device: list[float] = field(default_factory=list)
    staleness: dict[int, int] = field(default_factory=dict)
    utilisation: float = 0.0
    trainings: int = 0
    counted: int = 0
    late: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    cut_short: int = 0
    in_flight: int = 0
    returned: dict[str, int] = field(default_factory=dict)
    target: float | None = None
    target_s: float | None = None
    target_bytes: int | None = None

    @property
    def mean_staleness(self) -> float:
        """Of the updates that counted."""
        return sum(age * count for age, count in self.staleness.items()) / max(1, self.counted)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"mean_staleness": self.mean_staleness}
