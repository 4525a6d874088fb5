"""Who may do what at a broker, by hand from the protocol's table of topics; and clients that keep what they hear."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from fedmq_broker.embedded.topics import matches
from fedmq_protocol.aio import Connection, Message, RefusedError
from fedmq_protocol.errors import ConnectionFailedError
from tests.broker_fixtures import PATIENCE_S

ROOT = "fedmq/v1/home"
OTHER = "fedmq/v1/other"
DEVICES = ("dev-1", "dev-2", "board")
UP = ("hello", "update", "offer", "chunk", "report", "get")
DOWN = ("announcement", "lease", "receipt", "credit", "chunk", "notice")

TO_ALL = (
    f"{ROOT}/coordinator/status",
    f"{ROOT}/coordinator/run",
    f"{ROOT}/coordinator/turn",
    f"{ROOT}/model/r-1/0/s0",
    f"{ROOT}/model/r-1/1/d0",
)
PRESENCE = tuple(f"{ROOT}/dev/{device}/presence" for device in DEVICES)
PROBE = f"{ROOT}/monitor/probe"
ODD = (
    ROOT,
    f"{ROOT}/coordinator",
    f"{ROOT}/coordinator/other",
    f"{ROOT}/model/r-1/0",
    f"{ROOT}/model/r-1/0/s0/x",
    f"{ROOT}/dev/dev-1",
    f"{ROOT}/dev/dev-1/up",
    f"{ROOT}/dev/dev-1/up/other",
    f"{ROOT}/dev/dev-1/up/hello/x",
    f"{ROOT}/dev/dev-1/presence/x",
    f"{ROOT}/dev/nobody/presence",
    f"{ROOT}/dev/nobody/up/hello",
    f"{OTHER}/coordinator/run",
    f"{OTHER}/dev/dev-1/up/hello",
    f"{OTHER}/dev/dev-1/down/lease",
    "home",
    "/",
    "a/b",
)


def up(device: str) -> tuple[str, ...]:
    return tuple(f"{ROOT}/dev/{device}/up/{kind}" for kind in UP)


def down(device: str) -> tuple[str, ...]:
    return tuple(f"{ROOT}/dev/{device}/down/{kind}" for kind in DOWN)


EVERYBODYS = (
    *TO_ALL,
    *PRESENCE,
    PROBE,
    *(topic for device in DEVICES for topic in (*up(device), *down(device))),
    *ODD,
)
"""Topics of everybody, and some of nobody."""

BROKERS_OWN = ("$SYS/broker/version", "$SYS/broker/log/N", "$SYS/x", "$CONTROL/dynamic-security/v1/response")

WIDE = (
    "#",
    "+/#",
    "+",
    "fedmq/#",
    "fedmq/v1/#",
    "fedmq/v1/+/coordinator/run",
    "fedmq/+/home/coordinator/run",
    f"{ROOT}/#",
    f"{ROOT}/+/+",
    f"{ROOT}/+/#",
    f"{ROOT}/coordinator/#",
    f"{ROOT}/coordinator/+",
    f"{ROOT}/model/#",
    f"{ROOT}/model/+/+/+",
    f"{ROOT}/model/r-1/+/+",
    f"{ROOT}/model/r-1/0/#",
    f"{ROOT}/dev/#",
    f"{ROOT}/dev/+/#",
    f"{ROOT}/dev/+/+/+",
    f"{ROOT}/dev/+/presence",
    f"{ROOT}/dev/+/up/+",
    f"{ROOT}/dev/+/up/update",
    f"{ROOT}/dev/+/down/+",
    f"{ROOT}/dev/+/down/lease",
    f"{ROOT}/dev/+/down/notice",
    f"{ROOT}/dev/dev-1/#",
    f"{ROOT}/dev/dev-1/+/+",
    f"{ROOT}/dev/dev-1/down/#",
    f"{ROOT}/dev/dev-1/down/+",
    f"{ROOT}/dev/dev-2/#",
    f"{ROOT}/dev/dev-2/down/+",
    f"{ROOT}/dev/board/down/+",
    f"{ROOT}/monitor/+",
    f"{OTHER}/#",
    "$SYS/#",
    "$SYS/broker/+",
    "$CONTROL/#",
    "$CONTROL/dynamic-security/v1/response",
    "$share/g/#",
    f"$share/g/{ROOT}/#",
    f"$share/g/{ROOT}/dev/+/up/+",
    f"$share/g/{ROOT}/dev/dev-2/down/+",
    f"$share/g/{ROOT}/dev/dev-1/down/+",
    f"$share/g/{ROOT}/coordinator/run",
    f"$share/g/{ROOT}/dev/dev-2/down/lease",
)


def may_publish(who: str) -> set[str]:
    """The topics among `EVERYBODYS` on which it may be heard."""
    match who:
        case "@coordinator":
            return {*TO_ALL, *(topic for device in DEVICES for topic in down(device))}
        case "@monitor":
            return {PROBE}
        case "@guard":
            return set()
        case _:
            return {f"{ROOT}/dev/{who}/presence", *up(who)}


def may_read(who: str) -> set[str]:
    """The topics among `EVERYBODYS` whose messages it may get, however it asks."""
    others = {f"{ROOT}/dev/nobody/presence"}
    match who:
        case "@coordinator":
            heard = {topic for device in DEVICES for topic in up(device)} | {f"{ROOT}/dev/nobody/up/hello"}
            asked = {f"{ROOT}/dev/dev-1/up/other"}  # of a device that may not; it would be refused there
            return heard | asked | others | set(PRESENCE) | set(TO_ALL) - set(TO_ALL[1:3])
        case "@monitor":
            return {*TO_ALL[:3], PROBE, *PRESENCE} | others
        case "@guard":  # what it may read of the broker's own is told apart
            return {f"{ROOT}/dev/{device}/down/notice" for device in DEVICES}
        case _:
            return {*TO_ALL, *down(who)}


def needs(who: str) -> tuple[str, ...]:
    """The filters that it cannot do without."""
    match who:
        case "@coordinator":
            return (f"{ROOT}/dev/+/presence", f"{ROOT}/dev/+/up/+", TO_ALL[0], *TO_ALL[3:])
        case "@monitor":
            return (*TO_ALL[:3], f"{ROOT}/dev/+/presence", PROBE)
        case "@guard":
            return (f"{ROOT}/dev/+/down/notice",)
        case _:
            return (*TO_ALL, f"{ROOT}/dev/{who}/down/+")


def matching(topic_filter: str, topics: Iterable[str]) -> set[str]:
    return {topic for topic in topics if matches(topic_filter.split("/"), topic.split("/"))}


class Ear:
    """A client that keeps what it hears, by topic."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.heard: list[tuple[str, bytes]] = []
        self._came = asyncio.Condition()
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self.connection.events():
            if isinstance(event, Message):
                async with self._came:
                    self.heard.append((event.topic, event.payload))
                    self._came.notify_all()

    async def until(self, payload: bytes) -> list[tuple[str, bytes]]:
        """All that came before this payload, which is left out; forgotten from here on."""
        async with asyncio.timeout(PATIENCE_S), self._came:
            await self._came.wait_for(lambda: any(each[1] == payload for each in self.heard))
        place = [each[1] for each in self.heard].index(payload)
        before, self.heard = self.heard[:place], self.heard[place + 1 :]
        return before

    async def subscribe(self, topic_filter: str) -> bool:
        """Whether the broker grants it."""
        try:
            await self.connection.subscribe([topic_filter])
        except RefusedError:
            return False
        return True

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Whatever the broker answers: what counts is who hears it."""
        with contextlib.suppress(RefusedError, ConnectionFailedError):
            await self.connection.publish(topic, payload, retain=retain)

    async def stop(self) -> None:
        self._listening.cancel()
        await asyncio.wait([self._listening])
