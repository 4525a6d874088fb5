"""Each kind of message that a device sends: altered, forged, moved, repeated, or of a session that is over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgpack
import numpy as np
import pytest

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.limits import MAX_COUNTER
from fedmq_protocol.messages import Body, Get, Hello, Notice, Offer, Presence, Report, UploadChunk
from fedmq_protocol.signing import SigningKey
from tests.coordinator.core.world import FLOAT32, SCHEMA, TASK, Vector, World, settings

ROOT = "fedmq/v1/home/dev"
Say = Callable[[World], tuple[str, Body]]


def noise() -> Vector:
    """A change that does not compress, so that its update takes two chunks."""
    return np.random.default_rng(0).normal(0.0, 0.1, SCHEMA.size).astype(np.float32)


def large(world: World) -> Offer:
    return Offer(header=world.update("a", noise()).header, chunk_bytes=1_024)


def offered(world: World) -> tuple[str, Body]:
    """A chunk of an upload that is open."""
    update = world.update("a", noise())
    world.say(world.devices["a"], "offer", Offer(header=update.header, chunk_bytes=1_024))
    return "up/chunk", UploadChunk(run="r1", counter=0, index=0, data=update.data[:1_024])


def failing(world: World) -> tuple[str, Body]:
    lease = world.core.runs["r1"].cohort_lease
    return "up/report", Report(code="train-failed", detail="out of memory", run="r1", lease=lease)


SAYINGS: dict[str, Say] = {
    "hello": lambda world: ("up/hello", Hello()),
    "get": lambda world: ("up/get", Get(run="r1", version=0, blob="snapshot", index=0)),
    "update": lambda world: ("up/update", world.update("a", 0.5)),
    "offer": lambda world: ("up/offer", large(world)),
    "upload_chunk": offered,
    "report": failing,
}


@pytest.fixture
def world() -> World:
    world = World()
    world.start_run(settings(rounds=9, compression=FLOAT32, selection={"min_available_devices": 2}))
    world.join("a", session=7)
    world.join("b", session=7)
    assert world.core.runs["r1"].members == {"a", "b"}
    return world


def packet(world: World, kind: str) -> tuple[str, bytes]:
    where, body = SAYINGS[kind](world)
    topic = f"{ROOT}/a/{where}"
    return topic, world.devices["a"].sealer.seal(topic, body)


def hear(world: World, topic: str, data: bytes) -> list[do.Effect]:
    """What comes of a packet, but for lines of the log."""
    return [effect for effect in world.tell(e.PacketArrived(topic, data)) if not isinstance(effect, do.Note)]


def refused_as(world: World, reason: str, topic: str, data: bytes) -> bool:
    """Whether a packet has no effect but that it is counted, and its sender told at the first time."""
    before = world.core.view(now=world.now).rejections.get(reason, 0)
    effects = hear(world, topic, data)
    others = [x for x in effects if not (isinstance(x, do.Send) and x.topic.endswith("/down/notice"))]
    return others == [] and world.core.view(now=world.now).rejections.get(reason, 0) == before + 1


@pytest.mark.parametrize("kind", SAYINGS)
class TestEachKind:
    def test_has_its_effect_once(self, world: World, kind: str) -> None:
        topic, data = packet(world, kind)
        assert hear(world, topic, data) != []
        for _ in range(3):
            assert refused_as(world, "replayed", topic, data)

    def test_of_a_session_that_is_over_is_refused(self, world: World, kind: str) -> None:
        topic, data = packet(world, kind)
        world.join("a", session=8)
        assert refused_as(world, "old-epoch", topic, data)

    def test_altered_in_any_part_is_refused(self, world: World, kind: str) -> None:
        topic, data = packet(world, kind)
        content, signature = msgpack.unpackb(data)
        fields = msgpack.unpackb(content)
        fields[4] += 1
        assert refused_as(world, "bad-signature", topic, msgpack.packb([msgpack.packb(fields), signature]))
        fields[3] += 1
        assert refused_as(world, "bad-signature", topic, msgpack.packb([msgpack.packb(fields), signature]))
        flipped = bytes([signature[0] ^ 1]) + signature[1:]
        assert refused_as(world, "bad-signature", topic, msgpack.packb([content, flipped]))

    def test_under_another_key_is_refused(self, world: World, kind: str) -> None:
        where, body = SAYINGS[kind](world)
        topic = f"{ROOT}/a/{where}"
        thief = Sealer(sender="a", epoch=7, key=SigningKey(hashlib.sha256(b"thief").digest()))
        assert refused_as(world, "bad-signature", topic, thief.seal(topic, body))
        theirs = msgpack.unpackb(thief.seal(topic, body))
        fields = msgpack.unpackb(theirs[0])
        fields[5] = world.devices["a"].sealer._key.key_id  # and in the other's name
        assert refused_as(world, "bad-signature", topic, msgpack.packb([msgpack.packb(fields), theirs[1]]))

    def test_on_another_topic_is_refused(self, world: World, kind: str) -> None:
        topic, data = packet(world, kind)
        assert refused_as(world, "wrong-topic", topic.replace("/a/", "/b/"), data)
        elsewhere = f"{ROOT}/a/up/hello" if kind != "hello" else f"{ROOT}/a/up/get"
        assert refused_as(world, "wrong-topic", elsewhere, data)
        assert refused_as(world, "unknown-topic", topic.replace("home", "work"), data)

    def test_in_the_name_of_another_device_is_refused(self, world: World, kind: str) -> None:
        where, body = SAYINGS[kind](world)
        topic = f"{ROOT}/a/{where}"
        other = world.devices["b"].sealer
        assert refused_as(world, "wrong-topic", topic, other.seal(topic, body))


def test_an_update_that_is_sealed_anew_has_the_same_receipt_and_counts_once(world: World) -> None:
    update = world.update("a", 0.5)
    topic = f"{ROOT}/a/up/update"
    sealer = world.devices["a"].sealer
    first = World.receipt(world.tell(e.PacketArrived(topic, sealer.seal(topic, update))))
    second = World.receipt(world.tell(e.PacketArrived(topic, sealer.seal(topic, update))))
    assert first == second
    assert len(world.of(f.UpdateAccepted)) == 1


def test_a_chunk_that_is_sealed_anew_is_not_answered_and_does_no_harm(world: World) -> None:
    update = world.update("a", noise())
    device = world.devices["a"]
    world.say(device, "offer", Offer(header=update.header, chunk_bytes=1_024))
    chunk = UploadChunk(run="r1", counter=0, index=0, data=update.data[:1_024])
    assert len(world.say(device, "chunk", chunk)) == 1
    assert world.say(device, "chunk", chunk) == []
    rest = UploadChunk(run="r1", counter=0, index=1, data=update.data[1_024:])
    assert World.receipt(world.say(device, "chunk", rest)).outcome == "accepted"


# ------------------------------------------------------------------------------------------------ presence


def presence(world: World, *, online: bool, session: int, **fields: object) -> tuple[str, bytes]:
    key = world.devices["a"].sealer._key
    sealer = Sealer(sender="a", epoch=session, key=key)
    sealer._sequence = int(str(fields.pop("sequence", 0)))
    body = Presence.model_validate(
        {"online": online, "session": session, "public_key": key.public_key, **fields}
    )
    return f"{ROOT}/a/presence", sealer.seal(f"{ROOT}/a/presence", body)


def is_online(world: World) -> bool:
    return world.core.state.devices["a"].online


def test_a_birth_certificate_after_its_session_s_end_is_an_echo(world: World) -> None:
    birth = presence(world, online=True, session=8, sequence=1)
    hear(world, *birth)
    hear(world, *presence(world, online=False, session=8))
    assert not is_online(world)
    hear(world, *birth)
    assert not is_online(world)
    hear(world, *presence(world, online=True, session=9, sequence=1))
    assert is_online(world)


def test_a_birth_certificate_that_was_mended_since_is_an_echo(world: World) -> None:
    ill = presence(world, online=True, session=8, sequence=1, problem="too warm")
    well = presence(world, online=True, session=8, sequence=2)
    hear(world, *ill)
    assert world.core.state.devices["a"].problem == "too warm"
    hear(world, *well)
    hear(world, *ill)
    assert world.core.state.devices["a"].problem == ""


def test_a_last_will_of_an_earlier_session_is_an_echo(world: World) -> None:
    hear(world, *presence(world, online=True, session=8, sequence=1))
    hear(world, *presence(world, online=False, session=7))
    assert is_online(world)


def test_what_is_retained_is_heard_again_after_a_reconnection(world: World) -> None:
    birth = presence(world, online=True, session=8, sequence=1)
    hear(world, *birth)
    world.tell(e.BrokerDisconnected("gone"))
    world.tell(e.BrokerConnected())
    assert not is_online(world)
    hear(world, *birth)
    assert is_online(world)


def test_a_presence_of_another_session_than_its_envelope_is_refused(world: World) -> None:
    topic = f"{ROOT}/a/presence"
    sealer = world.devices["a"].sealer
    lie = Presence(online=True, session=99, public_key=sealer.public_key)
    assert refused_as(world, "bad-session", topic, sealer.seal(topic, lie))
    stranger = Sealer(sender="c", epoch=3, key=SigningKey(bytes(32)))
    first = Presence(online=True, session=4, public_key=stranger.public_key)
    topic = f"{ROOT}/c/presence"
    assert refused_as(world, "bad-session", topic, stranger.seal(topic, first))
    assert "c" not in world.core.state.devices


def test_the_sessions_of_those_whose_updates_count_outlive_a_restart(world: World) -> None:
    old = presence(world, online=True, session=7, sequence=9)
    stale_get = packet(world, "get")
    world.join("a", session=8)
    assert world.send("a", 0.5).outcome == "accepted"
    world.core = world.replayed()
    world.tell(e.CoordinatorStarted(epoch=2))
    world.tell(e.BrokerConnected())
    hear(world, *old)
    assert not is_online(world)
    assert refused_as(world, "old-epoch", *stale_get)
    world.join("a", session=8)
    assert is_online(world)


# ---------------------------------------------------------------------------------- devices that lost count


def notices(effects: list[do.Effect]) -> list[Notice]:
    return [
        effect.body for effect in effects if isinstance(effect, do.Send) and isinstance(effect.body, Notice)
    ]


def born_again(world: World, *, session: int) -> list[do.Effect]:
    """The device comes with a new disk: its sessions, and what it seals, begin anew."""
    device = world.devices["a"]
    device.sealer = Sealer(sender="a", epoch=session, key=SigningKey(hashlib.sha256(b"a").digest()))
    key = device.sealer.public_key
    device.sealer.seal("will", Presence(online=False, session=session, public_key=key))
    return world.say(device, "presence", Presence(online=True, session=session, public_key=key, tasks=[TASK]))


def test_a_device_that_comes_with_an_older_session_is_told_which_is_believed() -> None:
    world = World()
    world.join("a", session=100)
    assert [notice.session for notice in notices(born_again(world, session=5))] == [100]
    world.leave("a", session=5)
    assert world.core.state.devices["a"].session == 100
    world.pass_time(11)
    assert [notice.session for notice in notices(world.say(world.devices["a"], "hello", Hello()))] == [100]
    assert notices(world.say(world.devices["a"], "hello", Hello())) == []
    assert notices(born_again(world, session=101)) == []
    assert world.core.state.devices["a"].session == 101


def test_of_a_session_that_is_over_the_next_one_is_believed() -> None:
    """No clock: the first session of the new disk is the last one of the old disk."""
    world = World()
    world.join("a", session=1)
    world.leave("a", session=1)
    told = notices(born_again(world, session=1))
    assert [(notice.code, notice.session) for notice in told] == [("old-session", 2)]
    assert not world.core.state.devices["a"].online
    born_again(world, session=3)
    assert world.core.state.devices["a"].online


def test_the_operator_sees_who_is_not_believed() -> None:
    world = World()
    world.join("a", session=100)
    world.leave("a", session=100)
    world.start_run(settings(rounds=1))
    born_again(world, session=5)
    (seen,) = world.core.view(now=world.now).devices
    assert "speaks in session 5, and 100 has begun" in seen.problem
    assert "a: speaks in session 5" in world.core.run_view("r1", now=world.now).waiting
    born_again(world, session=102)
    (seen,) = world.core.view(now=world.now).devices
    assert seen.problem == ""


def test_a_late_packet_of_a_device_that_is_there_and_well_asks_nothing_of_it() -> None:
    """What it is told, it has: the session that is believed is its own."""
    world = World()
    device = world.join("a", session=1)
    late = device.sealer.seal("fedmq/v1/home/dev/a/up/hello", Hello())
    world.join("a", session=2)
    (notice,) = notices(world.tell(e.PacketArrived("fedmq/v1/home/dev/a/up/hello", late)))
    assert notice.session == 2
    world.say(device, "hello", Hello())
    assert world.core.state.devices["a"].trouble == ""


def test_the_highest_session_of_all_is_no_way_to_break_anything() -> None:
    world = World()
    world.join("a", session=MAX_COUNTER)
    world.leave("a", session=MAX_COUNTER)
    assert [notice.session for notice in notices(born_again(world, session=MAX_COUNTER))] == [MAX_COUNTER]
