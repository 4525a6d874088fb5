"""The embedded broker holds clients to the same rules as a Mosquitto in production, by what they call themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from fedmq_broker.embedded import access
from fedmq_broker.embedded.access import rights_of
from fedmq_broker.runner import RunningBroker
from fedmq_protocol.aio import Will
from fedmq_protocol.errors import ConnectionFailedError
from fedmq_protocol.topics import Topics
from tests.broker.gate.matrix import (
    EVERYBODYS,
    OTHER,
    ROOT,
    TO_ALL,
    WIDE,
    Ear,
    matching,
    may_publish,
    may_read,
    needs,
)
from tests.broker_fixtures import Connect

LONGEST = "a" * 64
CLIENT_IDS = {
    "dev-1": "fedmq-home-dev-1",
    "dev-2": "fedmq-home-dev-2",
    "board": "fedmq-home-board",
    "@coordinator": "home-coordinator",
    "@monitor": "home-monitor",
}


@pytest.fixture
async def ears(start: Callable[..., RunningBroker], connect: Connect) -> AsyncIterator[dict[str, Ear]]:
    """Every member, one who reads everything, and those who may say what is to be heard."""
    url = start("embedded").url
    others = {
        "witness": "anybody",
        "all": "home-operator-1f",
        "other": "other-operator-2e",
    }
    ears = {who: Ear(await connect(url, name)) for who, name in (CLIENT_IDS | others).items()}
    yield ears
    for ear in ears.values():
        await ear.stop()


def test_the_longest_names_have_their_rights_and_longer_ids_are_strangers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topics = Topics(LONGEST)
    assert rights_of(f"fedmq-{LONGEST}-{LONGEST}").may_publish(topics.up(LONGEST, "hello"))
    assert rights_of(f"{LONGEST}-coordinator").may_publish(topics.announcement)
    monkeypatch.setattr(access, "rules", pytest.fail)  # to take it apart would be some seconds of work
    assert rights_of(f"fedmq-{'a-' * 100}a").given is None


def speaker(ears: dict[str, Ear], topic: str) -> Ear:
    if f"{topic}/".startswith(f"{ROOT}/"):
        return ears["all"]
    return ears["other"] if topic.startswith(f"{OTHER}/") else ears["witness"]


@pytest.mark.parametrize("retained", [False, True], ids=["live", "retained"])
async def test_each_is_heard_on_its_own_topics_and_nowhere_else(ears: dict[str, Ear], retained: bool) -> None:  # noqa: FBT001
    witness = ears["witness"]
    if not retained:
        assert await witness.subscribe("#")
    for who in CLIENT_IDS:
        for topic in EVERYBODYS:
            await ears[who].publish(topic, f"{who} on {topic}".encode(), retain=retained)
    if retained:
        assert await witness.subscribe("#")
    await witness.publish("marker", b"end")
    heard = {payload for _, payload in await witness.until(b"end")}
    assert heard == {f"{who} on {topic}".encode() for who in CLIENT_IDS for topic in may_publish(who)}


@pytest.mark.parametrize("retained", [False, True], ids=["live", "retained"])
async def test_each_hears_what_is_for_it_and_nothing_else(ears: dict[str, Ear], retained: bool) -> None:  # noqa: FBT001
    marker = {
        who: f"{ROOT}/dev/nobody/presence" if who.startswith("@") else f"{ROOT}/dev/{who}/down/notice"
        for who in CLIENT_IDS
    }
    for who in CLIENT_IDS:
        assert await ears[who].subscribe(f"{ROOT}/dev/+/presence" if who.startswith("@") else marker[who])
    if retained:
        for topic in EVERYBODYS:
            await speaker(ears, topic).publish(topic, f"kept {topic}".encode(), retain=True)
    wrong: list[str] = []
    for number, topic_filter in enumerate((*EVERYBODYS, *WIDE)):
        granted = {who: await ears[who].subscribe(topic_filter) for who in CLIENT_IDS}
        if not retained:
            for topic in matching(topic_filter, EVERYBODYS):
                await speaker(ears, topic).publish(topic, f"{number} {topic}".encode())
        end = f"end {number}".encode()
        for topic in set(marker.values()):
            await ears["all"].publish(topic, end)
        for who in CLIENT_IDS:
            heard = {topic for topic, _ in await ears[who].until(end)}
            wrong += [f"{who} by {topic_filter} heard {topic}" for topic in heard - may_read(who)]
            if topic_filter in needs(who):
                wrong += [f"{who} lacks {topic}" for topic in matching(topic_filter, EVERYBODYS) - heard]
            if granted[who] and topic_filter not in {marker[who], f"{ROOT}/dev/+/presence"}:
                await ears[who].connection.unsubscribe([topic_filter])
    assert not wrong


async def test_a_last_will_in_another_s_name_is_refused(
    start: Callable[..., RunningBroker], connect: Connect
) -> None:
    url = start("embedded").url
    witness = Ear(await connect(url, "anybody"))
    assert await witness.subscribe("#")
    for topic in (TO_ALL[0], f"{ROOT}/dev/dev-2/presence", f"{OTHER}/coordinator/run"):
        with pytest.raises(ConnectionFailedError):
            await connect(url, "fedmq-home-dev-1", will=Will(topic, b"will"))
    own = await connect(url, "fedmq-home-dev-1", will=Will(f"{ROOT}/dev/dev-1/presence", b"own will"))
    await own.stop(graceful=False)
    assert await witness.until(b"own will") == []
    await witness.stop()


async def test_others_read_everything_and_speak_outside_of_the_protocol(
    start: Callable[..., RunningBroker], connect: Connect
) -> None:
    broker = start("embedded")
    anybody = Ear(await connect(broker.url, "mosquitto_sub"))
    coordinator = Ear(await connect(broker.url, "home-coordinator"))
    assert await anybody.subscribe("#")
    await anybody.publish(f"{ROOT}/coordinator/run", b"forged")
    await anybody.publish(f"{ROOT}/dev/dev-1/up/hello", b"forged again")
    await coordinator.publish(f"{ROOT}/coordinator/run", b"true")
    await anybody.publish("mine", b"end")
    assert await anybody.until(b"end") == [(f"{ROOT}/coordinator/run", b"true")]
    log = broker.log_path.read_text()
    assert f"mosquitto_sub may not publish on {ROOT}/coordinator/run" in log
    assert log.count("may not publish") == 1
    for ear in (anybody, coordinator):
        await ear.stop()


@pytest.mark.parametrize(
    ("client_id", "topic", "may"),
    [
        ("fedmq-a-b-c", "fedmq/v1/a/dev/b-c/presence", True),
        ("fedmq-a-b-c", "fedmq/v1/a-b/dev/c/presence", True),
        ("fedmq-a-b-c", "fedmq/v1/a/dev/b/presence", False),
        ("fedmq-a", "fedmq/v1/a/dev/a/presence", False),
        ("fedmq-A-b", "fedmq/v1/A/dev/b/presence", False),
        ("a-b-coordinator", "fedmq/v1/a-b/coordinator/run", True),
        ("a-b-coordinator", "fedmq/v1/a/coordinator/run", False),
        ("a-coordinator-x", "fedmq/v1/a/coordinator/run", False),
        ("a-monitor-0f", "fedmq/v1/a/monitor/probe", True),
        ("a-operator", "fedmq/v1/a/model/r/0/s0", True),
        ("a-operator", "fedmq/v1/b/model/r/0/s0", False),
        ("anybody", "fedmq/v1/a/monitor/probe", False),
        ("anybody", "home/lamp", True),
        ("anybody", "$SYS/x", False),
        ("fedmq-home-dev-1", "home/lamp", False),
    ],
)
def test_rights_by_client_id(client_id: str, topic: str, may: bool) -> None:  # noqa: FBT001
    assert rights_of(client_id).may_publish(topic) is may
