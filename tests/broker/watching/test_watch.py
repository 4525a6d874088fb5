"""What is heard, as one picture."""

from __future__ import annotations

import itertools

import pytest

from fedmq_broker.watching.metrics import exposition, names
from fedmq_broker.watching.picture import (
    STEPS_BY,
    CoordinatorPicture,
    DevicePicture,
    Picture,
    RunPicture,
    by_trouble,
)
from fedmq_broker.watching.watch import Watch
from fedmq_coordinator.core.facts import ClosedBy
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.messages import Body, Presence, Status
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

TOPICS = Topics("home")
KEY = SigningKey(bytes(range(32)))


class Told:
    """A watch, and a short way to tell it something."""

    def __init__(self) -> None:
        self.watch = Watch(TOPICS, limits={"max_queued_messages": 100.0})
        self.sealer = Sealer(sender="dev-1", epoch=1, key=KEY)
        self.watch.connected(now=0.0)

    def log(self, text: str, *, now: float) -> None:
        self.watch.heard("$SYS/broker/log/N", f"1795420257: {text}".encode(), now=now)

    def say(self, topic: str, body: Body, *, now: float) -> None:
        self.watch.heard(topic, self.sealer.seal(topic, body), now=now)

    def presence(self, device: str, *, online: bool, session: int, now: float, **fields: object) -> None:
        body = Presence.model_validate(
            {"online": online, "session": session, "public_key": KEY.public_key, **fields}
        )
        self.say(TOPICS.presence(device), body, now=now)

    def picture(self, now: float) -> Picture:
        return self.watch.picture(now=now, wall=1_000.0 + now)


@pytest.fixture
def told() -> Told:
    return Told()


def test_strangers_make_no_new_names(told: Told) -> None:
    """Who is refused is only who it says: each name would be a new series in Prometheus."""
    told.presence("dev-1", online=False, session=1, now=0.0)
    told.watch.coordinator_told(
        CoordinatorPicture(), [DevicePicture(device="dev-2", state="offline")], now=0.0
    )
    told.log("New client connected from 127.0.0.1:1 as dev-3 (p5, c1, k60, u'dev-3').", now=1.0)
    for name in ("dev-1", "dev-2", "dev-3", "@coordinator", *(f"stranger-{number}" for number in range(300))):
        told.log(f"Client {name} disconnected, not authorised.", now=2.0)
    seen = told.picture(3.0)
    assert {client.client for client in seen.clients} == {"dev-1", "dev-2", "dev-3", "@coordinator"}
    assert seen.broker.events["refused"] == 304
    assert seen.happenings[0].client == "stranger-299"


def test_steps_are_named_as_the_coordinator_names_them() -> None:
    assert ClosedBy.__args__ == STEPS_BY  # type: ignore[attr-defined]


def test_who_is_dropped_is_named_first_and_forgotten_in_time(told: Told) -> None:
    told.log("New client connected from 127.0.0.1:1 as dev-7 (p2, c1, k60).", now=1.0)
    told.log("Outgoing messages are being dropped for client dev-7.", now=2.0)
    told.log("Client dev-8 already connected, closing old connection.", now=3.0)
    told.log("Client dev-9 closed its connection.", now=4.0)
    picture = told.picture(5.0)
    assert [(each.client, each.troubles) for each in picture.clients] == [
        ("dev-8", {"taken-over": 1}),
        ("dev-7", {"dropped": 1}),
    ]
    assert [(each.kind, each.ago_s) for each in picture.happenings] == [("taken-over", 2.0), ("dropped", 3.0)]
    assert picture.broker.events == {"connected": 1, "dropped": 1, "taken-over": 1, "lost": 1}
    assert told.picture(2_000.0).clients == []


def test_names_without_end_are_not_kept_without_end(told: Told) -> None:
    for number in range(5_000):
        told.log(f"Client x{number} already connected, closing old connection.", now=1.0)
    picture = told.picture(2.0)
    assert len(picture.clients) == 4_096
    assert len(picture.happenings) == 64
    text = exposition(picture, cap=10)
    assert text.count("fedmq_client_troubles_total{") == 10


def test_a_probe_that_returns_is_timed_and_one_that_does_not_is_lost(told: Told) -> None:
    told.watch.probe_sent(b"one", now=1.0)
    told.watch.heard(TOPICS.monitor_probe, b"one", now=1.25)
    told.watch.heard(TOPICS.monitor_probe, b"somebody else's", now=1.3)
    told.watch.probe_sent(b"two", now=6.0)
    told.watch.probe_sent(b"three", now=20.0)
    broker = told.picture(21.0).broker
    assert (broker.probe_s, broker.probes, broker.probes_lost) == (0.25, 1, 1)
    assert broker.probe_buckets["0.1"] == 0
    assert broker.probe_buckets["0.25"] == broker.probe_buckets["5"] == 1


def test_a_broker_that_is_away_tells_nothing(told: Told) -> None:
    told.watch.heard("$SYS/broker/uptime", b"5 seconds", now=1.0)
    told.watch.disconnected("nobody listens there", now=10.0)
    told.watch.disconnected("no route", now=12.0)
    broker = told.picture(15.0).broker
    assert (broker.up, broker.detail, broker.since_s, broker.figures) == (False, "no route", 5.0, {})
    assert "fedmq_broker_up 0" in exposition(told.picture(15.0))


class TestWithoutCoordinator:
    """The federation as its retained messages tell it."""

    def test_presence_makes_devices(self, told: Told) -> None:
        told.presence("dev-1", online=True, session=5, now=1.0)
        told.presence("dev-2", online=True, session=5, problem="no data", now=1.0)
        told.presence("dev-3", online=False, session=5, now=1.0)
        told.presence("dev-4", online=False, session=5, traffic=(10, 20), now=1.0)
        picture = told.picture(61.0)
        assert [(each.device, each.state, each.silent_s) for each in picture.devices] == [
            ("dev-3", "offline", 60.0),
            ("dev-2", "unable", 0.0),
            ("dev-4", "offline", 0.0),  # it said goodbye
            ("dev-1", "idle", 0.0),
        ]
        assert picture.coordinator.told_by == "broker"
        assert picture.coordinator.states == {"idle": 1, "unable": 1, "offline": 2}

    def test_a_late_will_is_of_a_connection_that_is_over(self, told: Told) -> None:
        told.presence("dev-1", online=True, session=6, now=1.0)
        told.presence("dev-1", online=False, session=5, now=2.0)
        assert [each.state for each in told.picture(3.0).devices] == ["idle"]

    def test_a_device_that_is_struck_off_is_gone(self, told: Told) -> None:
        told.presence("dev-1", online=True, session=6, now=1.0)
        told.watch.heard(TOPICS.presence("dev-1"), b"", now=2.0)
        assert told.picture(3.0).devices == []

    def test_the_coordinators_last_will(self, told: Told) -> None:
        for online in (True, False):
            told.say(
                TOPICS.coordinator_status,
                Status(online=online, session=1, public_key=KEY.public_key),
                now=1.0,
            )
            assert told.picture(2.0).coordinator.at_broker is online

    def test_nonsense_is_passed_over(self, told: Told) -> None:
        for topic in (TOPICS.announcement, TOPICS.presence("dev-1"), TOPICS.coordinator_status, "a/b"):
            told.watch.heard(topic, b"\xff\x00", now=1.0)
        assert told.picture(2.0).coordinator.told_by == "nobody"

    def test_why_the_coordinator_is_not_heard(self, told: Told) -> None:
        told.watch.coordinator_told(CoordinatorPicture(up=True, told_by="coordinator"), [], now=1.0)
        told.watch.coordinator_silent("nobody there", now=10.0)
        told.watch.coordinator_silent("nobody there", now=20.0)
        coordinator = told.picture(30.0).coordinator
        assert (coordinator.up, coordinator.detail, coordinator.since_s) == (False, "nobody there", 20.0)


def devices(*each: tuple[str, str, float]) -> list[DevicePicture]:
    return [
        DevicePicture.model_validate({"device": name, "state": state, "silent_s": silent})
        for name, state, silent in each
    ]


def test_the_silent_come_first_then_the_troubled() -> None:
    told = devices(
        ("a", "idle", 0),
        ("b", "offline", 0),
        ("c", "unable", 0),
        ("d", "offline", 90),
        ("e", "training", 100),
    )
    for order in itertools.permutations(told):
        assert [each.device for each in by_trouble(list(order))] == ["e", "d", "c", "b", "a"]


def test_of_many_devices_only_the_worst_have_metrics(told: Told) -> None:
    many = devices(*((f"d{number}", "offline", float(number)) for number in range(3_000)))
    run = RunPicture(
        run="r-1", state="active", mode="sync", task="iris 1", round=3, version=2, round_age_s=1.5
    )
    coordinator = CoordinatorPicture(
        up=True, told_by="coordinator", run=run, states={"offline": 3_000}, steps={"deadline": 2}
    )
    told.watch.coordinator_told(coordinator, many, now=1.0)
    text = exposition(told.picture(2.0), cap=50)
    assert text.count("fedmq_device_silent_seconds{") == 50
    assert 'fedmq_device_silent_seconds{device="d2999"} 2999' in text
    assert "fedmq_devices_unnamed 2950" in text
    assert 'fedmq_steps_total{closed_by="deadline"} 2' in text
    assert 'fedmq_steps_total{closed_by="timeout"} 0' in text  # so that its first rise is seen
    assert "fedmq_broker_limit_queued_messages 100" in text
    assert {"fedmq_round_age_seconds", "fedmq_run_info", "fedmq_devices"} <= names(text.splitlines())


def test_labels_are_escaped(told: Told) -> None:
    told.log('Client a"b\\c already connected, closing old connection.', now=1.0)
    assert 'client="a\\"b\\\\c"' in exposition(told.picture(2.0))


def test_a_picture_survives_json(told: Told) -> None:
    told.presence("dev-1", online=True, session=5, now=1.0)
    picture = told.picture(2.0)
    assert Picture.model_validate_json(picture.model_dump_json()) == picture
