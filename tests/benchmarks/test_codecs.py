"""The benchmark of codecs measures what it says, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from math import comb, log2
from pathlib import Path

import numpy as np
import pytest

from benchmarks.coders import CODERS, SLOW, even, gaps_static, varint_zstd

ROOT = Path(__file__).parents[2]


def test_it_measures_indices_updates_and_speed(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    tiny = "--model digits_tiny --density 0.05 --round 2 --device 0 --large digits_tiny --slow"
    command = [sys.executable, str(ROOT / "benchmarks" / "codecs.py"), *tiny.split(), "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    figures = found["digits_tiny"]["0.05"]
    assert figures["index_bits"] <= figures["tried"]["rice"]
    assert figures["index_bits_default"] <= figures["tried"]["rice"]
    assert set(figures["tried"]) >= {*CODERS, *SLOW, "sent by default"}
    n, k = 3036, 152
    assert figures["bound"] == pytest.approx(log2(comb(n, k)) / k)
    bits = 32 / (figures["update_ratio"]["log4"] * 0.05)  # of the whole packet, for each element kept
    assert figures["index_bits"] < bits < figures["index_bits"] + 30
    assert {"encode_mb_s", "encode_to_argpartition", "decode_mb_s", "decode_to_scatter_add"} <= set(
        found["speed"]
    )


def test_coders_that_are_only_lengths_are_no_shorter_than_entropy_allows() -> None:
    n, shapes = 20_000, [(100, 200)]
    indices = np.flatnonzero(np.random.default_rng(1).random(n) < 0.03)
    bound = even(indices, n, shapes)
    assert bound == pytest.approx(log2(comb(n, len(indices))))
    for name, coder in (CODERS | SLOW).items():
        assert bound * 0.99 < coder(indices, n, shapes) < 2.5 * bound, name


def test_gaps_of_one_length_cost_what_is_worked_out_by_hand() -> None:
    indices = np.arange(299, 60_000, 300)  # 200 gaps of 299, each two bytes in LEB128
    assert (
        gaps_static(indices, 60_000, []) == 32 + 33 + 6 + 200 * 6
    )  # gap + 1 = 300 = 4 * 2**6 + 44: six bits left
    assert varint_zstd(indices, 60_000, []) < 8 * 30
