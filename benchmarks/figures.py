"""How figures are read and printed: what counts as reached, what spreads, what machine. Shared by the benchmarks."""

from __future__ import annotations

import math
import platform
import statistics
from pathlib import Path
from typing import Final

MEAN_OF = 3
"""Accuracy is read as the mean of so many successive rounds: the test set has 359 examples."""

_T_95: Final = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Two-sided 95 % quantiles of Student's t for so many pairs."""


def first_at(accuracy: list[float], target: float = 0.95) -> int | None:
    """The first round (from 1) at which the mean of three successive ones has reached the target."""
    for last in range(MEAN_OF, len(accuracy) + 1):
        if statistics.fmean(accuracy[last - MEAN_OF : last]) >= target:
            return last
    return None


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


def paired(differences: list[float]) -> tuple[float, float]:
    """Mean of paired differences, at least two, and half of its 95 % interval (Student's t)."""
    count = len(differences)
    half = _T_95.get(count, 1.96) * statistics.stdev(differences) / math.sqrt(count)
    return statistics.fmean(differences), half
