"""A run's report as the coordinator tells it, turned into the figures of `report.json`."""

from __future__ import annotations

import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from fedmq.report.figures import (
    DeviceFigures,
    Report,
    RoundFigures,
    UpdateFigures,
    float32_bytes,
    mean_of_last,
    reach,
)
from fedmq_coordinator.core.report import RoundReport, RunReport
from fedmq_coordinator.core.views import DeviceView

_PACKAGES = ("fedmq", "torch", "numpy", "paho-mqtt")


def figures(run: RunReport, devices: Sequence[DeviceView], *, target: float | None = None) -> Report:
    """The figures of one run.

    Args:
        run: what the coordinator's journal says.
        devices: what it says of the devices now.
        target: accuracy up to which rounds and bytes are counted; None: the run's own.
    """
    began = min([row.opened_at for row in run.rounds] + [update.start for update in run.updates], default=0.0)
    rounds = [_round(row, began) for row in run.rounds]
    updates = [
        UpdateFigures(
            device=update.device,
            start_s=update.start - began,
            end_s=update.end - began,
            staleness=update.staleness,
            num_examples=update.num_examples,
        )
        for update in run.updates
    ]
    accuracy = [row.accuracy for row in rounds if row.accuracy is not None]
    seconds = [row.seconds for row in run.rounds]
    totals = run.totals
    plain = float32_bytes(run.size, totals.updates_accepted)
    measured = totals.bytes_up + totals.bytes_down
    target = run.settings.target if target is None else target
    reached = None if target is None else reach(rounds, target)
    until = [] if reached is None else [row for row in rounds if row.round <= reached.round]
    return Report(
        run=run.run,
        task=run.task.name,
        mode=run.settings.mode,
        state=run.state,
        reason=run.reason,
        devices=_devices(devices, updates, totals.moved),
        rounds=rounds,
        updates=updates,
        num_parameters=run.num_parameters,
        began_at=began,
        accuracy=accuracy,
        loss=[row.loss for row in rounds if row.loss is not None],
        round_seconds=seconds,
        accuracy_final=mean_of_last(accuracy),
        accuracy_best=max(accuracy, default=None),
        target=target,
        rounds_to_target=None if reached is None else reached.round,
        bytes_to_target=None if reached is None else sum(row.bytes_up + row.bytes_down for row in until),
        seconds_to_target=None if reached is None else reached.end_s,
        bytes_up=totals.bytes_up,
        bytes_down=totals.bytes_down,
        bytes_float32=plain,
        compression_ratio=plain / measured if measured else None,
        participation_rate=totals.participation_rate,
        staleness={str(age): count for age, count in sorted(totals.staleness.items())},
        late_updates=sum(count for age, count in totals.staleness.items() if age > 0),
        rejected_updates=sum(totals.rejected.values()),
        wall_s=totals.seconds,
        round_seconds_median=statistics.median(seconds) if seconds else None,
        best_version=run.best_version,
        settings={"run": run.settings.model_dump(mode="json")},
        versions=versions(),
        machine=machine(),
    )


def versions() -> dict[str, str]:
    """Which software this is."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int | float]:
    """What this runs on, without naming it."""
    return {
        "cores": os.cpu_count() or 0,
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _round(row: RoundReport, began: float) -> RoundFigures:
    return RoundFigures(
        round=row.round,
        version=row.version,
        accuracy=row.federated_accuracy if row.accuracy is None else row.accuracy,
        loss=row.federated_loss if row.loss is None else row.loss,
        start_s=row.opened_at - began,
        end_s=row.closed_at - began,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        participants=len(row.participants),
        leased=row.leases,
        closed_by=row.closed_by,
    )


def _devices(
    devices: Sequence[DeviceView],
    updates: Sequence[UpdateFigures],
    moved: Mapping[str, tuple[int, int]],
) -> list[DeviceFigures]:
    counts = Counter(update.device for update in updates)
    known = {device.device: device for device in devices}
    return [
        DeviceFigures(
            id=name,
            updates=counts[name],
            num_examples=known[name].num_examples if name in known else None,
            bytes_up=moved[name][0] if name in moved else None,
            bytes_down=moved[name][1] if name in moved else None,
            problem=known[name].problem if name in known else "",
        )
        for name in sorted(
            known.keys() | counts.keys(), key=lambda name: (len(name), name)
        )  # dev-2 before dev-10
    ]
