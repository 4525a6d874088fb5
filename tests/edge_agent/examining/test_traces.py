"""What an examination says reaches the coordinator's real core: it answers, and is as it was before."""

from __future__ import annotations

import hashlib

import pytest

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_protocol.aio import Message
from fedmq_protocol.messages import Announcement
from tests.broker_fixtures import Connect, silence
from tests.coordinator.core.world import World, settings
from tests.edge_agent.examining.clinic import DEVICE, Clinic, be_known, findings_of
from tests.edge_agent.scripted import ScriptedCoordinator

NAMES = (
    "agent",
    "state",
    "certificate",
    "name",
    "route",
    "tls",
    "connection",
    "identity",
    "rights",
    "coordinator",
    "packets",
)
PRIVATE = hashlib.sha256(DEVICE.encode()).digest()  # as in `World`


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers in these tests before all is said."""
    monkeypatch.setattr("fedmq_edge_agent.examining.federation.ANSWER_S", 0.1)


async def said_by_an_examination(clinic: Clinic, connect: Connect, *, session: int) -> list[Message]:
    """Everything that the coordinator of a real broker hears of it."""
    port = clinic.open()
    reach = clinic.reach(port)
    listener = await connect(reach.pop("url"), "coordinator", **reach)
    topic, status = ScriptedCoordinator().status()
    await listener.publish(topic, status, retain=True)
    await listener.subscribe(clinic.topics.coordinator_filters())
    events = listener.events()
    examined = clinic.settings(port)
    be_known(examined, session=session, private=PRIVATE)
    found = await findings_of(examined, *NAMES)
    assert found["packets"].level == "ok"
    marker = clinic.topics.up("marker", "hello")

    async def probe() -> None:
        await listener.publish(marker, b"x")

    return [message for message in await silence(events, probe, marker) if message.topic != topic]


async def test_a_device_that_is_away_stays_as_it_was(clinic: Clinic, connect: Connect) -> None:
    world = World()
    world.start_run(settings(rounds=5))
    world.join(DEVICE, session=6)
    world.leave(DEVICE, session=6)
    device = world.core.state.devices[DEVICE]
    journal, rejections, trouble = len(world.journal), dict(device.rejections), device.trouble
    effects: list[do.Effect] = []
    for message in await said_by_an_examination(clinic, connect, session=1_000):
        effects += world.tell(e.PacketArrived(message.topic, message.payload))
    answers = [effect.body for effect in effects if isinstance(effect, do.Send)]
    assert any(isinstance(answer, Announcement) for answer in answers)
    assert len(world.journal) == journal
    assert (device.online, device.trouble, device.rejections) == (False, trouble, rejections)
    assert not world.core._conversation.rejections
    world.join(DEVICE, session=1_001)  # the agent begins above what it had reserved
    assert device.online
    assert not device.trouble


async def test_a_second_examination_is_heard_too(clinic: Clinic, connect: Connect) -> None:
    world = World()
    world.start_run(settings(rounds=5))
    world.join(DEVICE, session=6)
    for _ in range(2):
        heard = [m for m in await said_by_an_examination(clinic, connect, session=1_000) if m.payload]
        for message in heard:
            before = len(world.sent(Announcement))
            world.tell(e.PacketArrived(message.topic, message.payload))
            if message.topic.endswith("hello"):
                assert len(world.sent(Announcement)) == before + 1
    assert not world.core.state.devices[DEVICE].rejections


async def test_a_coordinator_that_does_not_know_the_device_is_not_disturbed(
    clinic: Clinic, connect: Connect
) -> None:
    world = World()
    world.start_run(settings(rounds=5))
    journal = len(world.journal)
    effects: list[do.Effect] = []
    for message in await said_by_an_examination(clinic, connect, session=1_000):
        effects += world.tell(e.PacketArrived(message.topic, message.payload))
    assert not [effect for effect in effects if isinstance(effect, do.Send)]
    assert len(world.journal) == journal
    assert DEVICE not in world.core.state.devices
