"""The figures of a run, as `report.json` holds them, and what each of them means.

Times are seconds since the run began unless they say otherwise; bytes are counted on the devices' MQTT sockets, all
packets, acknowledgements and keepalives included, before TLS.
"""

from __future__ import annotations

import statistics
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT: Final = 1
"""Grows when a key of `report.json` changes its meaning or goes."""

LAST_ROUNDS: Final = 5
"""A final accuracy is the mean of so many rounds, so that one lucky round does not stand for a run."""

FLOAT32_BYTES: Final = 4


class RoundFigures(BaseModel):
    """One synchronous round, or one published version of an asynchronous run."""

    model_config = ConfigDict(extra="forbid")

    round: int
    version: int
    accuracy: float | None = None
    loss: float | None = None
    start_s: float
    end_s: float
    bytes_up: int
    bytes_down: int
    participants: int
    leased: int
    closed_by: str = ""


class UpdateFigures(BaseModel):
    """One update that counted: who trained when, and on how old a version."""

    model_config = ConfigDict(extra="forbid")

    device: str
    start_s: float
    end_s: float
    staleness: int
    num_examples: int


class DeviceFigures(BaseModel):
    """One device over the whole run."""

    model_config = ConfigDict(extra="forbid")

    id: str
    updates: int
    num_examples: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    slow_s: float = 0.0
    killed_s: float | None = None
    problem: str = ""


class Report(BaseModel):
    """Everything that is known of a run. `report.json` is this, by name."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    run: str
    task: str
    mode: str
    state: str
    reason: str = ""
    devices: list[DeviceFigures]
    rounds: list[RoundFigures]
    updates: list[UpdateFigures]
    num_parameters: int
    began_at: float
    """When the first lease was given: 0 of all other times. Seconds since the epoch."""

    accuracy: list[float]
    """Of each round that was evaluated, on the coordinator's held-out data or else on the devices'."""
    loss: list[float]
    round_seconds: list[float]
    accuracy_final: float | None
    """Mean of the last five rounds."""
    accuracy_best: float | None
    accuracy_centralised: float | None = None
    """Of the same model trained on all devices' data in one place, as many epochs; mean of the last five."""
    accuracy_centralised_curve: list[float] = []
    accuracy_gap: float | None = None
    """accuracy_centralised - accuracy_final."""
    target: float | None = None
    rounds_to_target: int | None = None
    bytes_to_target: int | None = None
    seconds_to_target: float | None = None

    bytes_up: int
    bytes_down: int
    bytes_float32: int
    """4 bytes a parameter, down and up, for each update that counted: the same work in plain float32."""
    compression_ratio: float | None
    """bytes_float32 / (bytes_up + bytes_down)."""
    participation_rate: float | None
    """Updates that counted over leases given."""
    staleness: dict[str, int]
    """How many updates counted at each staleness, in published versions."""
    late_updates: int
    rejected_updates: int
    wall_s: float
    round_seconds_median: float | None
    time_to_first_round_s: float | None = None
    """From the start of the command to the end of the first round."""
    best_version: int | None = None

    settings: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, str | int | float] = Field(default_factory=dict)


def mean_of_last(values: list[float]) -> float | None:
    """The mean of the last five, or of as many as there are."""
    return statistics.fmean(values[-LAST_ROUNDS:]) if values else None


def float32_bytes(num_parameters: int, exchanges: int) -> int:
    """What so many downloads and uploads of the whole model would take in float32."""
    return 2 * FLOAT32_BYTES * num_parameters * exchanges


def reach(rounds: list[RoundFigures], target: float) -> RoundFigures | None:
    """The first round whose accuracy is at the target."""
    for figures in rounds:
        if figures.accuracy is not None and figures.accuracy >= target:
            return figures
    return None


def add_centralised(report: Report, curve: list[float]) -> Report:
    """The report with centralised training beside it; `curve` is its accuracy an epoch."""
    centralised = mean_of_last(curve)
    gap = (
        None if centralised is None or report.accuracy_final is None else centralised - report.accuracy_final
    )
    return report.model_copy(
        update={"accuracy_centralised": centralised, "accuracy_centralised_curve": curve, "accuracy_gap": gap}
    )
