"""Runs of `fedmq demo` as its users run it, and what their reports say. Shared by the benchmarks."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEAN_OF = 3
"""Accuracy is read as the mean of so many successive rounds: the test set has 359 examples."""


def run_demo(*options: str | float, timeout_s: float = 600.0) -> dict[str, Any]:
    """Run `fedmq demo` in a process of its own.

    Args:
        options: as on the command line.
        timeout_s: longer than any sane run.

    Returns:
        Its report.json.

    Raises:
        RuntimeError: it failed; the text is what it said.
    """
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as out:
        command = [sys.executable, "-m", "fedmq", "demo", "--out", out, *map(str, options)]
        done = subprocess.run(  # noqa: S603  our own command line
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        report: dict[str, Any] = json.loads((Path(out) / "report.json").read_text())
        return report


def first_at(accuracy: list[float], target: float = 0.95) -> int | None:
    """The first round (from 1) at which the mean of three successive ones has reached the target."""
    for last in range(MEAN_OF, len(accuracy) + 1):
        if statistics.fmean(accuracy[last - MEAN_OF : last]) >= target:
            return last
    return None


def seconds_to(report: Mapping[str, Any], target: float = 0.95) -> float | None:
    """Wall time from the first lease until the round of `first_at` closed."""
    number = first_at(report["accuracy"], target)
    return None if number is None else float(report["rounds"][number - 1]["end_s"])


def machine() -> str:
    """What the figures were measured on, in a line."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return f"{cpu}, {len(Path('/proc/stat').read_text().split('cpu')) - 2} cores, {platform.system()}"


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and least to most."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
