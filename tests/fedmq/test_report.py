"""A run's figures, worked out by hand for a small journal, and the page that shows them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fedmq.demo.summary import summary
from fedmq.report.figures import Report, add_centralised
from fedmq.report.from_run import figures
from fedmq.report.page import seconds_text, write
from fedmq.report.pictures import all_pictures
from fedmq.report.sizes import bytes_text
from fedmq_coordinator.core.report import RoundReport, RunReport, Totals, UpdateReport
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.views import DeviceView
from fedmq_protocol.messages import TaskRef

BEGAN = 1_000_000.0


def run_report(*, mode: str = "sync", rounds: int = 3) -> RunReport:
    """Rounds of half a second by two devices; the second one's update of the last round is two versions late."""
    rows = [
        RoundReport(
            round=number,
            version=number,
            opened_at=BEGAN + 0.5 * (number - 1),
            closed_at=BEGAN + 0.5 * number,
            seconds=0.5,
            accuracy=0.9 + 0.02 * number,
            loss=1 / number,
            bytes_up=1000,
            bytes_down=9000 if number == 1 else 3000,
            participants=["dev-1", "dev-2"],
            leases=2,
            on_time=2,
            closed_by="all",
        )
        for number in range(1, rounds + 1)
    ]
    updates = [
        UpdateReport(
            device=f"dev-{device}",
            start=row.opened_at,
            end=row.closed_at - 0.1,
            staleness=2 if (row.round, device) == (rounds, 2) else 0,
            round=row.round,
            weight=1.0,
            num_examples=10,
            train_s=0.2,
        )
        for row in rows
        for device in (1, 2)
    ]
    return RunReport(
        run="hand-made",
        task=TaskRef(name="a <task>", version="1", schema_hash="0" * 64),
        settings=RunSettings.model_validate({"mode": mode, "rounds": rounds}),
        state="finished",
        created_at=BEGAN - 1,
        started_at=BEGAN,
        num_parameters=1000,
        size=1000,
        best_version=rounds,
        rounds=rows,
        updates=updates,
        totals=Totals(
            seconds=0.5 * rounds,
            bytes_up=1000 * rounds,
            bytes_down=9000 + 3000 * (rounds - 1),
            leases=2 * rounds + 1,
            updates_accepted=2 * rounds,
            updates_used=2 * rounds,
            participation_rate=2 * rounds / (2 * rounds + 1),
            staleness={0: 2 * rounds - 1, 2: 1},
            rejected={"norm": 1},
        ),
    )


DEVICES = [
    DeviceView(
        device=f"dev-{n}", state="idle", since_s=1, num_examples=10, sent_bytes=1500, received_bytes=7500
    )
    for n in (1, 2)
]


def test_the_figures_are_those_of_the_journal() -> None:
    report = figures(run_report(), DEVICES, target=0.94)
    assert report.accuracy == pytest.approx([0.92, 0.94, 0.96])
    assert report.accuracy_final == pytest.approx(0.94)
    assert report.accuracy_best == pytest.approx(0.96)
    assert report.loss == pytest.approx([1, 1 / 2, 1 / 3])
    assert report.round_seconds == [0.5, 0.5, 0.5]
    assert (report.rounds_to_target, report.bytes_to_target) == (2, 1000 + 9000 + 1000 + 3000)
    assert report.seconds_to_target == pytest.approx(1.0)
    assert report.bytes_float32 == 2 * 4 * 1000 * 6
    assert report.compression_ratio == pytest.approx(48_000 / 18_000)
    assert report.staleness == {"0": 5, "2": 1}
    assert (report.late_updates, report.rejected_updates) == (1, 1)
    assert report.participation_rate == pytest.approx(6 / 7)
    assert [update.start_s for update in report.updates[:2]] == [0, 0]
    assert report.rounds[1].start_s == pytest.approx(0.5)


def test_a_target_that_was_not_reached_has_no_figures() -> None:
    report = figures(run_report(), DEVICES, target=0.99)
    assert (report.rounds_to_target, report.bytes_to_target, report.seconds_to_target) == (None, None, None)
    assert ("to 99%", "not reached") in summary(report, Path("out"))


def test_what_devices_measured_stands_in_where_nothing_was_measured_centrally() -> None:
    run = run_report()
    rows = [
        row.model_copy(
            update={"accuracy": None, "loss": None, "federated_accuracy": 0.5, "federated_loss": 2.0}
        )
        for row in run.rounds
    ]
    report = figures(run.model_copy(update={"rounds": rows}), DEVICES)
    assert report.accuracy == [0.5, 0.5, 0.5]
    assert report.loss == [2.0, 2.0, 2.0]


def test_the_gap_is_between_the_means_of_the_last_five() -> None:
    report = add_centralised(figures(run_report(rounds=8), DEVICES), [0.1, 0.9, 1.0, 1.0, 1.0, 0.95])
    assert report.accuracy_centralised == pytest.approx((0.9 + 1 + 1 + 1 + 0.95) / 5)
    assert report.accuracy_final == pytest.approx(sum(0.9 + 0.02 * n for n in (4, 5, 6, 7, 8)) / 5)
    assert report.accuracy_centralised is not None
    assert report.accuracy_final is not None
    assert report.accuracy_gap == pytest.approx(report.accuracy_centralised - report.accuracy_final)


@pytest.mark.parametrize(("mode", "rounds"), [("sync", 1), ("sync", 3), ("fedbuff", 60)])
def test_pictures_are_well_formed_and_share_no_id(mode: str, rounds: int) -> None:
    report = figures(run_report(mode=mode, rounds=rounds), DEVICES, target=0.95)
    pictures = all_pictures(report)
    assert [picture.name for picture in pictures] == ["learning", "traffic", "staleness", "timeline"]
    ids: list[str] = []
    for picture in pictures:
        tree = ET.fromstring(picture.svg)  # our own text
        ids += [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
        for target in re.findall(r"url\(#([^)]*)\)", picture.svg):
            assert target in ids
        assert "#0102" not in picture.svg  # every marker colour became a variable of the page
        assert {"width", "height"}.isdisjoint(tree.attrib)
    assert len(ids) == len(set(ids))


def test_pictures_are_the_same_for_the_same_run() -> None:
    first, second = (all_pictures(figures(run_report(), DEVICES)) for _ in range(2))
    assert first == second


def test_the_page_and_the_figures_are_written_and_names_are_escaped(tmp_path: Path) -> None:
    report = add_centralised(figures(run_report(), DEVICES, target=0.95), [0.97])
    data, page = write(report, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert "a &lt;task&gt; on 2 devices" in text
    assert "<task>" not in text
    assert "http" not in re.sub(r'(xmlns(:\w+)?|href)="http[^"]*"|"-//W3C[^>]*>', "", text)
    assert Report.model_validate(json.loads(data.read_text(encoding="utf-8"))) == report


def test_a_run_without_a_single_round_has_a_page_too(tmp_path: Path) -> None:
    run = run_report().model_copy(
        update={"rounds": [], "updates": [], "totals": Totals(), "state": "stopped"}
    )
    _, page = write(figures(run, []), tmp_path)
    assert "It is stopped" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (12_345, "12 KB"),
        (1_234_567, "1.2 MB"),
        (5e12, "5.0 TB"),
    ],
)
def test_bytes_read_well(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.456, "0.46 s"), (42.4, "42 s"), (200, "3 min 20 s")]
)
def test_seconds_read_well(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text
