"""The benchmark of a large model, at two million parameters: that it runs to its end and sees every process."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.large_model import Options, measure
from tests.broker_fixtures import require_mosquitto


@pytest.mark.timeout(600)
def test_a_model_goes_down_and_its_updates_come_back(tmp_path: Path) -> None:
    require_mosquitto()
    result = measure(Options(parameters=2_000_000, devices=2, rounds=2, timeout_s=400.0, folder=tmp_path))
    assert result.accepted == 4
    assert 7_990_000 < result.model_bytes <= 8_000_000
    kinds = {"broker", "coordinator", "with model host", "agent", "agent supervisor", "agent trainer"}
    assert result.peaks.keys() == kinds
    assert all(peak.rss >= peak.anonymous > 0 for peak in result.peaks.values())
    assert result.peaks["coordinator"].rss < 250e6  # Python, the API and the database; two models are 16 MB
    assert result.peaks["agent supervisor"].rss < 70e6
    assert result.answers_s
