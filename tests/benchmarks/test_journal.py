"""The benchmark of the journal counts what it says it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.journal import measure


def test_all_ways_write_the_same_groups_in_turns(tmp_path: Path) -> None:
    figures = measure(1000, 3, 0.0, tmp_path, None)
    assert [each.where for each in figures] == ["file + fsync", "SQLite"]
    assert len({each.times for each in figures}) == 1
    assert figures[0].times >= 5
    assert figures[0].bound == 1.0
    for each in figures:
        assert (each.update_bytes, each.group) == (1000, 3)
        assert each.updates_per_s == pytest.approx(3 / each.median_s)
    assert list(tmp_path.iterdir()) == []
