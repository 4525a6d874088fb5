"""Runs of `fedmq demo` as its users run it. Shared by the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import first_at


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


def seconds_to(report: Mapping[str, Any], target: float = 0.95) -> float | None:
    """Wall time from the first lease until the round of `first_at` closed."""
    number = first_at(report["accuracy"], target)
    return None if number is None else float(report["rounds"][number - 1]["end_s"])
