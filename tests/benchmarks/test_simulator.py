"""The benchmark of the simulator measures what it says, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_fleets_and_histories(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    script = str(ROOT / "benchmarks" / "simulator.py")
    sizes = ["--devices", "20", "--versions", "3", "--histories", "2"]
    command = [sys.executable, script, *sizes, "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["fleets"][0]["updates"] == 30
    assert found["histories"]["events"] >= 2 * 200
