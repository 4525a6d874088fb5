"""The measurement of what coding takes runs, in small, and what it finds is far below a second model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.codec_memory import steps


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_every_step_takes_less_than_half_a_model(tmp_path: Path) -> None:
    done = list(steps(8_000_000, tmp_path))
    assert len(done) == 8
    for step in done:
        assert step.extra < 0.9, f"{step.name}: slices weigh more on a model of 32 MB than on one of 400"
        assert step.seconds > 0
