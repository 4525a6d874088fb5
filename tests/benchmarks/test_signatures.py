"""The benchmark of signatures measures what it says, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_every_message(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "signatures.py"), "--times", "3", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))["messages"]
    assert "receipt" in found
    assert "update of 2 %" in found
    for figures in found.values():
        # a signature and a key id, with msgpack's heads, version, kind, sender, epoch and sequence
        assert 64 + 8 < figures["envelope_bytes"] < 64 + 8 + 50
        assert figures["seal_us"] > 0
        assert figures["verify_ratio"] > 0
