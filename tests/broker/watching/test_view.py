"""A picture on 80 columns."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from fedmq_broker.watching.picture import (
    BrokerPicture,
    ClientPicture,
    CoordinatorPicture,
    DevicePicture,
    Happening,
    Picture,
    RunPicture,
    by_trouble,
)
from fedmq_broker.watching.view import draw, rows, size, span

FIGURES = {
    "broker_clients_connected": 203.0,
    "broker_load_messages_received_1min": 600.0,
    "broker_load_bytes_received_1min": 1_200_000.0,
    "broker_publish_messages_dropped": 3.0,
    "broker_load_publish_dropped_1min": 3.0,
    "broker_heap_current": 180_000_000.0,
    "broker_retained_messages_count": 400.0,
    "broker_uptime": 93_600.0,
}
BROKER = BrokerPicture(
    address="mqtts://broker.home.arpa:8883",
    up=True,
    detail="",
    version="mosquitto version 2.0.11",
    figures=FIGURES,
    figures_age_s=3.0,
    queued_messages=1_900,
    queued_bytes=2_000_000,
    limits={"max_queued_messages": 2_600.0, "max_queued_bytes": 26_000_000.0, "memory_limit": 210_000_000.0},
    probe_s=0.0123,
)
RUN = RunPicture(
    run="digits-3", state="active", mode="sync", task="digits 1", round=12, rounds=50, version=11,
    round_open=True, round_age_s=18.0, closes_in_s=42.0, answered=7, goal=10, leases=3,
    waiting="7 of 10 updates; dev-4 offline 3 min by its last will; closes in 42 s",
)  # fmt: skip
COORDINATOR = CoordinatorPicture(
    federation="home", told_by="coordinator", up=True, detail="", epoch=4, at_broker=True, run=RUN,
    states={"idle": 190, "training": 10, "offline": 3},
)  # fmt: skip


def device(name: str, state: str = "idle", **fields: object) -> DevicePicture:
    return DevicePicture.model_validate({"device": name, "state": state, **fields})


def drawn(picture: Picture, *, width: int = 80, height: int | None = None) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, height=height or 100).print(draw(picture, height=height))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.fixture
def picture() -> Picture:
    fleet = [device(f"dev-{number}", updates=12) for number in range(200)]
    fleet[4] = device("dev-4", "offline", silent_s=180.0, since_s=180.0, by_will=True, updates=12)
    fleet[7] = device("dev-7", "training", lease_age_s=20.0)
    fleet[9] = device("dev-9", "unable", problem="no data in /data")
    return Picture(
        at=1_000_000.0,
        broker=BROKER,
        coordinator=COORDINATOR,
        devices=by_trouble(fleet),
        clients=[ClientPicture(client="dev-7", troubles={"dropped": 2}, last_trouble_s=12.0)],
        happenings=[
            Happening(
                ago_s=12.0,
                kind="dropped",
                client="dev-7",
                text="Outgoing messages are being dropped for client dev-7.",
            )
        ],
        certificates={"server": 1_000_000.0 + 3 * 86_400, "authority": 2_000_000_000.0},
    )


def test_a_slow_round_and_a_full_queue_meet_on_one_screen(picture: Picture) -> None:
    lines = drawn(picture)
    text = "\n".join(lines)
    for said in (
        "mqtts://broker.home.arpa:8883 · 2.0.11 · up 26 h 0 min · 12.3 ms",
        "203 clients · in 10.0/s 20 KB/s",
        "waiting 1900 of 2600 messages, 2.0 MB of 26 MB · dropped 3",
        "memory 180 MB of 210 MB · retained 400",
        "run digits-3 active · sync, round 12 of 50 · version 11 · open 18 s",
        "7 of 10 updates, 3 at work",
        "waits for 7 of 10 updates; dev-4 offline 3 min by its last will",
        "devices     200: 10 training, 190 idle, 3 offline",
        "12 s ago  Outgoing messages are being dropped for client dev-7.",
        "certificate of server ends in 3 days",
    ):
        assert said in text
    table = [line.split() for line in lines if line.startswith("dev-")]
    assert [row[0] for row in table[:3]] == ["dev-7", "dev-4", "dev-9"]
    assert "queue full 2x" in next(line for line in lines if line.startswith("dev-7"))
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("height", [24, 30, 60])
def test_it_fits_into_the_terminal(picture: Picture, height: int) -> None:
    lines = drawn(picture, height=height)
    assert len(lines) <= height
    assert any(line.startswith("dev-7") for line in lines)
    assert any(line.startswith("and ") and line.endswith(" more") for line in lines)


def test_a_client_that_is_no_device_is_named_too(picture: Picture) -> None:
    troubled = ClientPicture(client="@coordinator", troubles={"dropped": 1}, last_trouble_s=60.0)
    seen = picture.model_copy(update={"clients": [troubled, *picture.clients]})
    first, second = rows(seen)[:2]
    assert (first.name, first.at_broker, first.remark) == ("@coordinator", "queue full", "60 s ago")
    assert second.name == "dev-7"


def test_who_is_away_is_said(picture: Picture) -> None:
    away = picture.model_copy(
        update={
            "broker": BrokerPicture(address="mqtt://b:1", since_s=200.0, detail="nobody listens at b:1"),
            "coordinator": CoordinatorPicture(
                federation="home", told_by="broker", since_s=5.0, detail="no coordinator is running"
            ),
        }
    )
    text = "\n".join(drawn(away))
    assert "broker      AWAY for 3 min: nobody listens at b:1" in text
    assert "coordinator SILENT for 5.0 s: no coordinator is running" in text
    assert "the broker has it as offline by its last will" in text


def test_a_broker_without_figures(picture: Picture) -> None:
    bare = BROKER.model_copy(update={"figures": {}, "figures_age_s": None, "queued_messages": None})
    assert any(
        "tells nothing of itself" in line for line in drawn(picture.model_copy(update={"broker": bare}))
    )


def test_markup_in_names_is_only_text(picture: Picture) -> None:
    odd = picture.model_copy(
        update={"devices": [device("dev-1", "unable", problem="[red]x[/red] [/nonsense]")], "clients": []}
    )
    assert any("[red]x[/red] [/nonsense]" in line for line in drawn(odd, width=120))


def test_what_devices_say_does_not_command_the_terminal(picture: Picture) -> None:
    said = "\x1b]0;mine\x07\x1b[2J all is well\nbroker  up \x9b31m"
    seen = picture.model_copy(
        update={
            "devices": [device("dev-1", "unable", problem=said)],
            "happenings": [Happening(ago_s=1.0, kind="refused", client=said, text=said)],
            "clients": [ClientPicture(client=said, troubles={"refused": 1}, last_trouble_s=1.0)],
            "coordinator": CoordinatorPicture(federation="home", told_by="nobody", detail=said),
        }
    )
    lines = drawn(seen, width=200)
    assert all(line.isprintable() for line in lines)
    assert sum("all is well" in line for line in lines) == 3
    assert not any(line.startswith("broker  up") for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (42.2, "42 s"),
        (180, "3 min"),
        (7_500, "2 h 5 min"),
        (864_000, "10 days"),
        (-1, "0.0 s"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_500, "1.5 KB"), (26e6, "26 MB"), (3.2e9, "3.2 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
