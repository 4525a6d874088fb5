"""Each identity tries everything that is another's, on a real Mosquitto; what must fail fails, by what is delivered.

The broker runs with the configuration that production uses. One more client is let in for the test, who may say and
hear everything: it hears what got through, and says what others should not hear.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from fedmq_broker import membership
from fedmq_broker.dynsec_control import Control
from fedmq_protocol.access import CONTROL_TOPIC, COORDINATOR, GUARD, MONITOR, OPERATOR
from fedmq_protocol.aio import BrokerSettings, Connection, Will
from fedmq_protocol.errors import ConnectionFailedError
from tests.broker.gate.conftest import ComeIn
from tests.broker.gate.matrix import (
    BROKERS_OWN,
    DEVICES,
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
from tests.broker.gate.world import World
from tests.broker_fixtures import PATIENCE_S

pytestmark = pytest.mark.mosquitto

IDENTITIES = ("dev-1", "dev-2", "board", COORDINATOR, MONITOR, GUARD)
ASKS = {
    COORDINATOR: f"{ROOT}/dev/+/presence",
    MONITOR: f"{ROOT}/dev/+/presence",
    GUARD: f"{ROOT}/dev/+/down/notice",
}
"""By which roles hear the mark that ends a turn; devices hear it as a notice."""
OF_THE_BROKER: dict[str, str | tuple[str, ...]] = {
    MONITOR: "$SYS/",
    GUARD: ("$SYS/broker/log/", "$SYS/broker/subscriptions", f"{CONTROL_TOPIC}/"),
}
EVERYWHERE = ("#", "$SYS/x", f"{CONTROL_TOPIC}/#")


class Stage:
    """A broker with all identities in it, and one who may do everything."""

    def __init__(self, world: World, come_in: ComeIn) -> None:
        self.world = world
        self.come_in = come_in
        self.ears: dict[str, Ear] = {}

    def settings(self, who: str) -> BrokerSettings:
        return self.world.by_password(who) if who == "board" else self.world.settings(who)

    async def enter(self, who: str, **options: object) -> Connection:
        return await self.come_in(self.settings(who), **options)

    async def open(self) -> None:
        await membership.enrol(self.world.site, ["dev-1", "dev-2"], live=self.world.live)
        await membership.enrol(self.world.site, ["board"], live=self.world.live, password=True)
        anything = [
            {"acltype": kind, "topic": topic, "priority": 0, "allow": True}
            for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")
            for topic in ("#", "$SYS/#", "$CONTROL/#")
        ]
        async with Control(self.world.live) as control:
            told = await control.command(
                [
                    {"command": "createRole", "rolename": "all", "acls": anything},
                    {
                        "command": "createClient",
                        "username": "witness",
                        "password": "seen",
                        "roles": [{"rolename": "all"}],
                    },
                ]
            )
        assert told == [None, None]
        self.witness = Ear(await self.come_in(self.world.by_password("witness", "seen")))
        for who in IDENTITIES:
            self.ears[who] = Ear(await self.enter(who))

    async def close(self) -> None:
        for ear in (self.witness, *self.ears.values()):
            await ear.stop()


@pytest.fixture
async def stage(world: World, come_in: ComeIn) -> AsyncIterator[Stage]:
    stage = Stage(world, come_in)
    await stage.open()
    yield stage
    await stage.close()


@pytest.mark.parametrize("retained", [False, True], ids=["live", "retained"])
async def test_each_is_heard_on_its_own_topics_and_nowhere_else(stage: Stage, retained: bool) -> None:  # noqa: FBT001
    if not retained:
        for topic_filter in EVERYWHERE:
            assert await stage.witness.subscribe(topic_filter)
    for who, ear in stage.ears.items():
        for topic in (*EVERYBODYS, *BROKERS_OWN, f"$share/g/{TO_ALL[1]}"):
            await ear.publish(topic, f"{who} on {topic}".encode(), retain=retained)
    if retained:  # what was kept is what comes to somebody who asks later
        for topic_filter in EVERYWHERE:
            assert await stage.witness.subscribe(topic_filter)
    await stage.witness.publish("marker", b"end")
    heard = {
        payload for topic, payload in await stage.witness.until(b"end") if not topic.startswith("$SYS/b")
    }
    expected = {f"{who} on {topic}".encode() for who in IDENTITIES for topic in may_publish(who)}
    if (
        retained
    ):  # of two that may publish there, the later is kept; only the coordinator's topics have one publisher
        assert heard == expected
    assert heard == expected


@pytest.mark.parametrize("retained", [False, True], ids=["live", "retained"])
async def test_each_hears_what_is_for_it_and_nothing_else(stage: Stage, retained: bool) -> None:  # noqa: FBT001
    said = (*EVERYBODYS, *(f"$share/g/{topic}" for topic in TO_ALL))
    filters = (*EVERYBODYS, *WIDE, *BROKERS_OWN)
    asks = {who: ASKS.get(who, f"{ROOT}/dev/{who}/down/notice") for who in IDENTITIES}
    markers = [f"{ROOT}/dev/nobody/presence", *(f"{ROOT}/dev/{device}/down/notice" for device in DEVICES)]
    for who, ear in stage.ears.items():
        assert await ear.subscribe(asks[who])
    if retained:
        for topic in said:
            await stage.witness.publish(topic, f"kept {topic}".encode(), retain=True)
    wrong: list[str] = []
    missing: list[str] = []
    for number, topic_filter in enumerate(filters):
        granted = {who: await ear.subscribe(topic_filter) for who, ear in stage.ears.items()}
        if not retained:
            for topic in matching(topic_filter.removeprefix("$share/g/"), said):
                await stage.witness.publish(topic, f"{number} {topic}".encode())
        end = f"end {number}".encode()
        for topic in markers:
            await stage.witness.publish(topic, end)
        for who, ear in stage.ears.items():
            heard = {topic for topic, _ in await ear.until(end)}
            wrong += [
                f"{who} by {topic_filter} heard {topic}"
                for topic in heard - may_read(who)
                if not topic.startswith(OF_THE_BROKER.get(who, "none"))
            ]
            if topic_filter in needs(who):
                lost = matching(topic_filter, said) - heard
                missing += [f"{who} by {topic_filter} lacks {topic}" for topic in lost]
            if granted[who] and topic_filter != asks[who]:
                await ear.connection.unsubscribe([topic_filter])
    assert not wrong
    assert not missing


@pytest.mark.parametrize("who", ["dev-1", "board", MONITOR])
async def test_a_last_will_says_nothing_in_another_s_name(stage: Stage, who: str) -> None:
    assert await stage.witness.subscribe("#")
    await stage.ears[who].connection.stop()
    own = min(may_publish(who))
    topics = [
        own,
        f"{ROOT}/dev/dev-2/presence",
        *TO_ALL[:3],
        f"{OTHER}/coordinator/run",
        f"{ROOT}/dev/dev-2/down/lease",
    ]
    for topic in topics:
        will = Will(topic, f"will on {topic}".encode(), retain=True)
        try:
            connection = await stage.enter(who, will=will)
        except ConnectionFailedError:
            assert topic != own
        else:
            await connection.stop(graceful=False)
    # The broker publishes a will when it sees the connection gone; the own one, which is allowed, was the first.
    async with asyncio.timeout(PATIENCE_S):
        while not any(payload.startswith(b"will on") for _, payload in stage.witness.heard):  # noqa: ASYNC110 - it is told by nothing else
            await asyncio.sleep(0.01)
    await stage.witness.publish("marker", b"end")
    heard = {payload for _, payload in await stage.witness.until(b"end")}
    assert {payload for payload in heard if payload.startswith(b"will")} == {f"will on {own}".encode()}


async def test_only_operator_and_guard_command_the_broker(stage: Stage) -> None:
    for who, ear in stage.ears.items():
        if who == GUARD:
            continue  # it may: it cuts off who floods
        command = {"command": "createClient", "username": f"by-{who.strip('@')}", "password": "x"}
        grant = {
            "command": "addRoleACL",
            "rolename": who,
            "acltype": "subscribePattern",
            "topic": "#",
            "allow": True,
        }
        for each in (command, grant):
            await ear.publish(CONTROL_TOPIC, json.dumps({"commands": [each]}).encode())
    async with Control(stage.world.live) as control:
        known = await control.clients()
        assert not [name for name in known if name.startswith("by-")]
        members = stage.world.authority.members().values()
        synced = await control.sync(members, stage.world.topics)
        assert (synced.added, synced.changed, synced.removed) == ((), (), ("witness",))


async def test_one_identity_has_one_session_and_takes_no_other_s(stage: Stage) -> None:
    """Whatever client id a device names, it is its own: so it cannot push the coordinator out."""
    coordinator = stage.ears[COORDINATOR]
    assert await coordinator.subscribe(f"{ROOT}/dev/+/up/+")
    for who in ("dev-1", "board"):
        await stage.ears[
            who
        ].connection.stop()  # it would push the one with the other name out, which is itself
        for name in (COORDINATOR, "home-coordinator", "dev-2"):
            imposter = Connection(stage.settings(who), client_id=name)
            await imposter.start(wait=True, timeout_s=PATIENCE_S)
            await imposter.publish(f"{ROOT}/dev/{who}/up/hello", f"{who} as {name}".encode())
            await imposter.stop()
    await stage.ears["dev-2"].publish(f"{ROOT}/dev/dev-2/up/hello", b"end")
    assert len(await coordinator.until(b"end")) == 6
    assert stage.world.log.count(f"as {COORDINATOR} ") == 1
    assert stage.world.log.count("as dev-2 ") == 1
    assert OPERATOR not in stage.ears
