"""Who is written to in the shorter form of envelopes: those who say that they read it."""

from __future__ import annotations

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_protocol.codecs.registry import names
from fedmq_protocol.messages import Announcement, Receipt
from fedmq_protocol.packing import NAME
from tests.coordinator.core.world import World, settings

READS = (*names(), NAME)


def sent(world: World, kind: type[Announcement | Receipt]) -> list[do.Send]:
    return [x for x in world.effects if isinstance(x, do.Send) and isinstance(x.body, kind)]


def test_each_device_is_answered_as_it_reads() -> None:
    world = World()
    world.join("a", codecs=READS)
    world.join("b", codecs=names())
    world.start_run(settings(rounds=5))
    for name in "ab":
        world.send(name, 0.1)
    receipts = {send.topic.split("/")[4]: send.packed for send in sent(world, Receipt)}
    assert receipts == {"a": True, "b": False}
    assert not any(send.packed for send in sent(world, Announcement)), "b would not understand"


def test_all_are_addressed_so_while_all_read_it() -> None:
    world = World()
    world.join("a", codecs=READS)
    world.join("b", codecs=READS)
    world.start_run(settings(rounds=5))
    announced = sent(world, Announcement)
    assert announced
    assert announced[-1].packed
    world.join("c")
    for name in "ab":
        world.send(name, 0.1)
    assert not sent(world, Announcement)[-1].packed
    world.leave("c")
    world.send("a", 0.1)
    world.send("b", 0.1)
    assert sent(world, Announcement)[-1].packed


def test_what_devices_pack_is_heard() -> None:
    world = World()
    device = world.join("a", codecs=READS)
    world.join("b", codecs=READS)
    world.start_run(settings(rounds=5))
    topic = "fedmq/v1/home/dev/a/up/update"
    packet = device.sealer.seal(topic, world.update("a", 0.5), packed=True)
    receipt = world.receipt(world.tell(e.PacketArrived(topic, packet)))
    assert receipt.outcome == "accepted"
