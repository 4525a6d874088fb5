"""The benchmark of events measures what it says, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_both_cores(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    script = str(ROOT / "benchmarks" / "core_events.py")
    command = [sys.executable, script, "--devices", "5,30", "--events", "40", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [(row["mode"], row["devices"]) for row in found["coordinator"]] == [
        (mode, devices) for mode in ("sync", "fedbuff", "fedasync") for devices in (5, 30)
    ]
    assert all(0 < row["deadline_us"] < row["update_us"] for row in found["coordinator"])
    assert 0 < found["device"]["timer_us"] < found["device"]["announcement_us"]
