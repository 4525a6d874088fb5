"""What a demo shows: a frame on a terminal, lines elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fedmq.demo.view import DeviceLine, Heading, LiveView, PlainView, Scene, picture, sparkline

HEADING = Heading("digits", 10, "sync")
SCENE = Scene(
    elapsed_s=6.3,
    broker="Mosquitto 2.0.11",
    doing="",
    waiting="7 of 10 updates; closes in 1.2 s",
    round=7,
    rounds=20,
    accuracies=(0.5, 0.6, 0.7),
    losses=(2.0, 1.5, 1.0),
    devices=tuple(DeviceLine(f"dev-{n}", "training", bytes_up=1000, bytes_down=9000) for n in range(3)),
    bytes_up=3000,
    bytes_down=27_000,
    bytes_float32=3_000_000,
    news=("dev-3 was killed",),
)


def drawn(scene: Scene) -> str:
    console = Console(file=io.StringIO(), width=100, _environ={})
    console.print(picture(HEADING, scene))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_frame_tells_all_that_there_is_to_know() -> None:
    text = drawn(SCENE)
    for part in (
        *("digits on 10 devices, sync", "Mosquitto 2.0.11", "7 of 20", "70.0%", "best 70.0%", "▁▅█"),
        *("3.0 KB up, 27 KB down", "1/100 of float32", "3 training", "7 of 10 updates; closes in 1.2 s"),
        *("dev-0", "dev-2", "dev-3 was killed"),
    ):
        assert part in text


def test_a_large_fleet_is_counted_instead_of_listed() -> None:
    devices = tuple(DeviceLine(f"dev-{n}", "idle" if n % 2 else "training") for n in range(40))
    text = drawn(replace(SCENE, devices=devices))
    assert "20 idle  20 training" in text
    assert "dev-39" not in text


def test_the_first_frame_says_what_goes_on() -> None:
    assert "starting the broker" in drawn(Scene(elapsed_s=0.1, doing="starting the broker", rounds=20))


@pytest.mark.parametrize(
    ("values", "blocks"),
    [([], ""), ([0.5], "▅"), ([0.5, 0.5], "▅▅"), ([0.0, 1.0], "▁█"), ([1.0, 0.5, 0.0], "█▅▁")],
)
def test_a_sparkline_runs_from_its_least_to_its_most(values: list[float], blocks: str) -> None:
    assert sparkline(values) == blocks


def test_a_sparkline_shows_the_last_values() -> None:
    assert len(sparkline([n / 100 for n in range(100)], width=8)) == 8


def test_lines_tell_each_thing_once() -> None:
    console = Console(file=io.StringIO(), width=100, _environ={})
    with PlainView(console, HEADING) as view:
        for scene in (
            Scene(elapsed_s=0.1, doing="starting the broker"),
            Scene(elapsed_s=0.2, doing="starting the broker"),
            SCENE,
            SCENE,
            replace(SCENE, doing="fetching"),
        ):
            view.show(scene)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "starting the broker"
    assert lines[1] == "dev-3 was killed"
    assert [line.split("  accuracy")[0] for line in lines[2:5]] == ["round   1", "round   2", "round   3"]
    assert lines[5:] == ["fetching"]


def test_the_live_view_draws_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, _environ={})
    with LiveView(console, HEADING) as view:
        view.show(SCENE)
    assert isinstance(console.file, io.StringIO)
    assert "7 of 20" in console.file.getvalue()
