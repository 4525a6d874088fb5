"""A guard on a real Mosquitto: who floods is cut off, may do nothing, and comes back when its time is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from fedmq_broker import membership
from fedmq_broker.dynsec_control import Control, ControlError
from fedmq_broker.guarding import patrol as patrol_module
from fedmq_broker.guarding.patrol import Patrol
from fedmq_broker.guarding.quarantine import FIRST_S, Quarantine
from fedmq_broker.guarding.watching import Allowance
from fedmq_protocol.access import COORDINATOR, GUARD
from fedmq_protocol.aio import Connected, Disconnected
from fedmq_protocol.envelope import COORDINATOR as SENDER
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.errors import ConnectionFailedError
from fedmq_protocol.messages import Notice
from fedmq_protocol.signing import SigningKey
from tests.broker.gate.conftest import ComeIn, come_in, stopped, world
from tests.broker.gate.world import World
from tests.broker_fixtures import PATIENCE_S, next_of

__all__ = ["come_in", "stopped", "world"]

ALLOWED = Allowance(payload_bytes=3_000_000, bytes_per_s=1_000.0, connections=8)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def patrol(world: World) -> AsyncIterator[Patrol]:
    await membership.enrol(world.site, ["dev-1", "dev-2"], live=world.live)
    quarantine = Quarantine(world.site.quarantine)
    ports = frozenset({world.port})
    made = Patrol(world.settings(GUARD), world.topics, ports, quarantine, ALLOWED, clock=Clock())
    stop = asyncio.Event()
    task = asyncio.create_task(made.run(stop))
    try:
        await until(lambda: listens(world))
        yield made
    finally:
        stop.set()
        await task


async def listens(world: World) -> bool:
    """Connected is not enough: what happens before it has subscribed, nobody tells it."""
    return "Sending SUBACK to @guard" in world.log


async def until(looks: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await looks():  # noqa: ASYNC110 - it looks from outside
            await asyncio.sleep(0.02)


async def cut_off(patrol: Patrol) -> bool:
    return "dev-1" in patrol._held


async def may_publish(world: World, come_in: ComeIn, name: str) -> bool:
    """Whether the broker passes on what a device says."""
    listener = await come_in(world.settings(COORDINATOR))
    topic = world.topics.up(name, "hello")
    await listener.subscribe([topic])
    device = await come_in(world.settings(name))
    with contextlib.suppress(ConnectionFailedError):
        await device.publish(topic, b"hello")
    marker = world.topics.coordinator_status
    await listener.subscribe([marker])
    await listener.publish(marker, b"marker")
    async with asyncio.timeout(PATIENCE_S):
        async for event in listener.events():
            match event:
                case Connected() | Disconnected():
                    continue
                case message:
                    await listener.stop()
                    await device.stop()
                    return message.topic == topic
    raise AssertionError


async def test_whom_the_coordinator_accuses_is_cut_off_and_comes_back(
    world: World, patrol: Patrol, come_in: ComeIn
) -> None:
    device, other = await come_in(world.settings("dev-1")), await come_in(world.settings("dev-2"))
    coordinator = await come_in(world.settings(COORDINATOR))
    topic = world.topics.down("dev-1", "notice")
    sealer = Sealer(sender=SENDER, epoch=1, key=SigningKey(b"c" * 32))
    notice = Notice(code="flood", detail="this device floods the coordinator")
    await coordinator.publish(topic, sealer.seal(topic, notice))
    await coordinator.stop()
    await next_of(device.events(), Disconnected)
    await until(lambda: cut_off(patrol))
    await device.stop()
    assert other.is_connected
    cut = patrol.quarantine.active()["dev-1"]
    assert cut.until - cut.since == FIRST_S
    assert not await may_publish(world, come_in, "dev-1")
    assert await may_publish(world, come_in, "dev-2")
    patrol.clock.now += FIRST_S + 1.0  # type: ignore[attr-defined]
    await until(lambda: released(patrol))
    assert await may_publish(world, come_in, "dev-1")


async def released(patrol: Patrol) -> bool:
    return not patrol._held and not patrol.quarantine.active()


async def test_denied_messages_and_subscriptions_count_too(
    world: World, patrol: Patrol, come_in: ComeIn
) -> None:
    """Nobody hears them but the kernel, which counts bytes."""
    device = await come_in(world.settings("dev-1"))
    with contextlib.suppress(ConnectionFailedError, TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while not await cut_off(patrol):
                await device.publish(world.topics.up("dev-2", "update"), bytes(100_000), qos=0)
    assert "beyond 0.0 MB a second" in patrol.quarantine.active()["dev-1"].why


async def test_who_connects_again_and_again_is_cut_off(world: World, patrol: Patrol, come_in: ComeIn) -> None:
    for _ in range(10):
        connection = await come_in(world.settings("dev-1"))
        await connection.stop(graceful=False)
    await until(lambda: cut_off(patrol))
    assert "9 connections in" in patrol.quarantine.active()["dev-1"].why


async def test_a_release_by_hand_is_heeded(world: World, patrol: Patrol, come_in: ComeIn) -> None:
    patrol.quarantine.begin("dev-1", "by hand", now=patrol.clock())
    await until(lambda: cut_off(patrol))
    patrol.quarantine.forgive("dev-1")
    await until(lambda: released(patrol))
    assert await may_publish(world, come_in, "dev-1")


async def test_nobody_can_accuse_the_coordinator_or_a_stranger(world: World, patrol: Patrol) -> None:
    patrol._accuse(COORDINATOR, "a lie")
    patrol._accuse("nobody", "a lie")
    patrol.quarantine.begin("dev-1", "the truth", now=patrol.clock())
    await until(lambda: cut_off(patrol))
    assert set(patrol.quarantine.active()) == {"dev-1"}


async def test_a_broker_that_starts_anew_is_told_again(world: World, patrol: Patrol) -> None:
    patrol.quarantine.begin("dev-1", "flood", now=patrol.clock())
    await until(lambda: cut_off(patrol))
    world.stop()
    world.start()  # with what the register says: everybody's rights

    async def told() -> bool:
        with contextlib.suppress(ConnectionFailedError):
            async with Control(world.live) as control:
                found = await control.client("dev-1")
                return found is not None and bool(found.get("disabled")) and not found.get("roles")
        return False

    await until(told)


async def test_a_release_that_the_broker_has_not_heard_of_outlives_a_broken_connection(
    world: World, patrol: Patrol, come_in: ComeIn
) -> None:
    """As Mosquitto comes back by systemd: with the plugin's own file, in which the device may do nothing."""
    patrol.quarantine.begin("dev-1", "by hand", now=patrol.clock())
    await until(lambda: cut_off(patrol))
    world.stop()
    patrol.quarantine.forgive("dev-1")
    patrol._held.clear()  # it has noticed
    kept = world.site.mosquitto.dynamic_security.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(membership, "render_files", lambda _site: None)
        world.start()
    assert '"disabled":' in kept
    await until(lambda: released(patrol))
    assert await may_publish(world, come_in, "dev-1")


@pytest.mark.parametrize("command", ["cut_off", "let_in"])
async def test_what_the_plugin_did_not_do_is_tried_again(
    world: World, patrol: Patrol, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    told, does = [], getattr(Control, command)

    async def once_mute(control: Control, name: str) -> None:
        told.append(name)
        if len(told) == 1:
            raise ControlError("the broker's security plugin does not answer within 30 s")
        await does(control, name)

    monkeypatch.setattr(Control, command, once_mute)
    monkeypatch.setattr(patrol_module, "_AGAIN_S", 0.05)
    patrol.quarantine.begin("dev-1", "flood", now=patrol.clock())
    await until(lambda: cut_off(patrol))
    patrol.quarantine.forgive("dev-1")
    await until(lambda: released(patrol))
    async with Control(world.live) as control:
        found = await control.client("dev-1")
    assert found is not None
    assert found.get("roles")
    assert told == ["dev-1", "dev-1"]
