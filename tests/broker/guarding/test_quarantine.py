"""Who is cut off until when: stated times, a way back, and a file that survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmq_broker.guarding.quarantine import FIRST_S, LONGEST_S, Quarantine
from fedmq_protocol.errors import StoreError, UsageError

DAY_S = 86_400.0


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    return Quarantine(tmp_path / "quarantine.json")


def test_each_time_is_twice_as_long_up_to_a_day(quarantine: Quarantine) -> None:
    now, lengths = 1_000.0, []
    for _ in range(10):
        cut = quarantine.begin("dev-1", "flood", now=now)
        lengths.append(cut.until - cut.since)
        assert quarantine.due(now=cut.until - 1.0) == []
        assert quarantine.due(now=cut.until) == ["dev-1"]
        now = cut.until
        quarantine.end("dev-1", now=now)
        assert quarantine.active() == {}
    assert lengths == [min(FIRST_S * 2**n, LONGEST_S) for n in range(10)]


def test_a_quiet_day_is_forgiven(quarantine: Quarantine) -> None:
    first = quarantine.begin("dev-1", "flood", now=0.0)
    quarantine.end("dev-1", now=first.until)
    later = quarantine.begin("dev-1", "flood", now=first.until + DAY_S + 1.0)
    assert later.times == 1


def test_who_is_cut_off_stays_so_for_the_stated_time(quarantine: Quarantine) -> None:
    first = quarantine.begin("dev-1", "one", now=0.0)
    assert quarantine.begin("dev-1", "two", now=100.0) == first


def test_it_survives_its_process(quarantine: Quarantine, tmp_path: Path) -> None:
    cut = quarantine.begin("dev-1", "flood", now=5.0)
    assert Quarantine(tmp_path / "quarantine.json").active() == {"dev-1": cut}


def test_the_operator_lets_it_in(quarantine: Quarantine) -> None:
    quarantine.begin("dev-1", "flood", now=0.0)
    quarantine.forgive("dev-1")
    assert quarantine.due(now=0.0) == ["dev-1"]  # until the broker knows
    quarantine.end("dev-1", now=1.0)
    assert quarantine.active() == {}
    assert quarantine.begin("dev-1", "flood", now=1.0).times == 1
    with pytest.raises(UsageError, match="dev-2 is not in quarantine"):
        quarantine.forgive("dev-2")


@pytest.mark.parametrize("text", ["", "[]", '{"dev-1": {}}', '{"dev-1": 3}'])
def test_a_damaged_file_is_named(quarantine: Quarantine, tmp_path: Path, text: str) -> None:
    (tmp_path / "quarantine.json").write_text(text)
    with pytest.raises(StoreError, match=r"quarantine\.json"):
        quarantine.read()
