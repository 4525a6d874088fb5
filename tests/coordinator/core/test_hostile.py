"""Every byte from outside is hostile: what is wrong is refused with a reason, and nothing else is disturbed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.uploads import Uploads
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import CodecSpec, encode
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.messages import (
    Announcement,
    Credit,
    Get,
    Hello,
    Lease,
    ModelChunk,
    Notice,
    Offer,
    Presence,
    Receipt,
    Status,
    Update,
    UpdateHeader,
    UploadChunk,
)
from fedmq_protocol.signing import SigningKey
from tests.coordinator.core.world import FLOAT32, SCHEMA, TASK, World, settings


def fleet(*names: str, **fields: object) -> World:
    world = World()
    for name in names or ("a", "b"):
        world.join(name)
    world.start_run(settings(rounds=9, compression=FLOAT32, **fields))
    return world


def raw_update(world: World, data: bytes, *, sha256: bytes | None = None) -> Update:
    header = world.update("a", 0.1).header
    ref = blob_ref(data) if sha256 is None else blob_ref(data).model_copy(update={"sha256": sha256})
    return Update(header=header.model_copy(update={"payload": ref}), data=data)


def rejected(world: World, update: Update) -> Receipt:
    before = world.core.runs["r1"].accumulator.total()
    receipt = world.receipt(world.say(world.devices["a"], "update", update))
    assert receipt.outcome == "rejected"
    assert np.array_equal(before, world.core.runs["r1"].accumulator.total()), (
        "nothing of it reached the model"
    )
    assert world.core.runs["r1"].round_open, "the round goes on without it"
    return receipt


def test_not_a_number_is_refused_and_the_device_left_in_peace() -> None:
    world = fleet()
    plain = encode(np.zeros(400, np.float32), CodecSpec("float32"))[0]
    head = plain[:5]  # tag and length
    body = np.full(400, np.nan, np.float32).tobytes()
    import msgpack  # noqa: PLC0415

    buffers = encode(np.zeros(10, np.float32), CodecSpec("float32"))[0]
    receipt = rejected(world, raw_update(world, msgpack.packb([head + b"\x00" + body, buffers])))
    assert (receipt.reason, receipt.residual) == ("not-finite", "discard")
    assert next(d for d in world.core.view(now=world.now).devices if d.device == "a").rejections == {
        "not-finite": 1
    }
    world.send("b", 0.1)
    assert world.core.runs["r1"].version == 1


@pytest.mark.parametrize("data", [b"", b"\x00" * 10, b"\x92\xc4\x00\xc4\x00", b"\xc1" * 100])
def test_garbage_payloads_are_refused(data: bytes) -> None:
    world = fleet()
    assert rejected(world, raw_update(world, data)).residual == "discard"


def test_a_payload_of_another_hash_is_refused_and_its_mass_kept() -> None:
    world = fleet()
    receipt = rejected(world, raw_update(world, b"abc", sha256=bytes(32)))
    assert (receipt.reason, receipt.residual) == ("bad-hash", "restore")


def test_a_norm_far_above_the_others_is_refused() -> None:
    world = fleet("a", "b", "c")
    for _ in range(3):
        world.send("b", 0.1)
        world.send("c", 0.1)
        if world.core.runs["r1"].round_open and "a" in world.core.runs["r1"].leases:
            world.send("a", 0.1)
    receipt = rejected(world, world.update("a", 50.0))
    assert (receipt.reason, receipt.residual) == ("norm", "discard")


def test_clipping_scales_an_update_down_to_the_median_norm() -> None:
    world = fleet("a", "b", "c", strategy={"clip": "median"})
    for _ in range(2):
        for name in "abc":
            world.send(name, 0.1)
    run = world.core.runs["r1"]
    before = run.model.weights.copy()
    world.send("a", 0.5)
    for name in "bc":
        world.send(name, 0.0)
    fact = next(
        x for x in world.of(f.UpdateAccepted)[::-1] if isinstance(x, f.UpdateAccepted) and x.device == "a"
    )
    assert fact.clip == pytest.approx(0.2, rel=1e-5)
    np.testing.assert_allclose(run.model.weights - before, 0.1 / 3, rtol=1e-4)


def test_an_update_without_a_lease_is_refused_but_not_lost() -> None:
    world = fleet()
    receipt = rejected(world, world.update("a", 0.1, lease=77))
    assert (receipt.reason, receipt.residual) == ("no-lease", "restore")


def test_a_lease_lets_a_device_train_once() -> None:
    world = fleet("a", "b", "c")
    world.send("a", 0.1)
    receipt = rejected(world, world.update("a", 0.1))
    assert receipt.reason == "no-lease"


def test_a_duplicate_counts_once_and_gets_the_same_receipt() -> None:
    world = fleet("a", "b", "c")
    update = world.update("a", 0.1)
    receipts = [world.receipt(world.say(world.devices["a"], "update", update)) for _ in range(3)]
    assert receipts[0] == receipts[1] == receipts[2]
    assert world.core.runs["r1"].accumulator.num_updates == 1
    assert len(world.of(f.UpdateAccepted)) == 1


def test_another_models_update_and_a_version_of_the_future_are_refused() -> None:
    world = fleet("a", "b", "c")
    assert rejected(world, world.update("a", 0.1, base=5)).reason == "unknown-version"
    assert rejected(world, world.update("a", 0.1, schema_hash="f" * 64)).reason == "schema-mismatch"


def test_an_update_for_a_run_that_is_not_here() -> None:
    world = fleet()
    header = world.update("a", 0.1).header.model_copy(update={"run": "nowhere"})
    receipt = world.receipt(world.say(world.devices["a"], "update", Update(header=header, data=b"")))
    assert (receipt.reason, receipt.residual) == ("unknown-run", "discard")


def test_nobody_speaks_for_another_device() -> None:
    world = fleet()
    thief = Sealer(sender="a", epoch=1, key=SigningKey(bytes(32)))
    topic = "fedmq/v1/home/dev/a/up/update"
    effects = world.tell(e.PacketArrived(topic, thief.seal(topic, world.update("a", 9.0))))
    assert not [x for x in effects if isinstance(x, do.Send) and isinstance(x.body, Receipt)]
    assert world.core.view(now=world.now).rejections == {"bad-signature": 1}
    replayed = world.devices["a"].sealer.seal(topic, world.update("a", 9.0))
    world.tell(e.PacketArrived("fedmq/v1/home/dev/b/up/update", replayed))
    assert world.core.runs["r1"].accumulator.num_updates == 0


def test_a_device_cannot_come_back_with_another_key() -> None:
    world = fleet()
    world.leave("a")
    topic = "fedmq/v1/home/dev/a/presence"
    key = SigningKey(bytes(32))
    birth = Presence(online=True, session=9, public_key=key.public_key, tasks=[TASK])
    world.tell(e.PacketArrived(topic, Sealer(sender="a", epoch=9, key=key).seal(topic, birth)))
    assert not world.core.state.devices["a"].online


def test_wrong_messages_are_said_to_their_sender_once() -> None:
    world = fleet()
    for _ in range(5):
        world.tell(e.PacketArrived("fedmq/v1/home/dev/a/up/update", b"garbage"))
    assert [n.code for n in world.sent(Notice)] == ["malformed"]
    assert world.core.view(now=world.now).rejections == {"malformed": 5}


@given(
    st.binary(max_size=60),
    st.sampled_from(["presence", "up/update", "up/offer", "up/chunk", "up/nothing", "down/x"]),
)
def test_garbage_on_every_topic_changes_nothing(data: bytes, kind: str) -> None:
    world = WORLD
    before = len(world.journal)
    for topic in (
        f"fedmq/v1/home/dev/a/{kind}",
        "fedmq/v1/home/coordinator/status",
        f"fedmq/v1/home/dev/zz/{kind}",
        "x",
    ):
        world.tell(e.PacketArrived(topic, data))
    assert len(world.journal) == before
    assert world.core.runs["r1"].round_open


WORLD = fleet()


# Updates in chunks


def offered(world: World, name: str = "a") -> tuple[UpdateHeader, list[bytes]]:
    rng = np.random.default_rng(5)
    update = world.update(name, rng.normal(size=SCHEMA.size).astype(np.float32))
    chunk_bytes = 1024
    pieces = [update.data[i : i + chunk_bytes] for i in range(0, len(update.data), chunk_bytes)]
    return update.header, pieces


def test_an_update_in_chunks_in_any_order_with_duplicates() -> None:
    world = fleet("a", "b", "c")
    header, pieces = offered(world)
    device = world.devices["a"]
    world.say(device, "offer", Offer(header=header, chunk_bytes=1024))
    credit = world.sent(Credit)[-1]
    assert (credit.have, credit.window) == (b"\0" * -(-len(pieces) // 8), 4)
    for index in (1, 0, 1):
        world.say(
            device, "chunk", UploadChunk(run="r1", counter=header.counter, index=index, data=pieces[index])
        )
    assert world.core.runs["r1"].accumulator.num_updates == (1 if len(pieces) == 2 else 0)
    world.say(device, "offer", Offer(header=header, chunk_bytes=1024))


def test_a_chunked_update_is_accepted_once_it_is_whole() -> None:
    world = fleet("a", "b", "c")
    header, pieces = offered(world)
    device = world.devices["a"]
    world.say(device, "offer", Offer(header=header, chunk_bytes=1024))
    effects = []
    for index, piece in enumerate(pieces):
        effects += world.say(
            device, "chunk", UploadChunk(run="r1", counter=header.counter, index=index, data=piece)
        )
    assert world.receipt(effects).outcome == "accepted"
    assert world.core.runs["r1"].accumulator.num_updates == 1
    again = world.say(device, "offer", Offer(header=header, chunk_bytes=1024))
    assert world.receipt(again).outcome == "accepted", (
        "an offer of what is settled is answered by its receipt"
    )


def test_an_upload_of_another_hash_has_its_last_word_and_a_chunk_without_an_offer_none() -> None:
    world = fleet("a", "b", "c")
    header, pieces = offered(world)
    device = world.devices["a"]
    assert not world.say(
        device, "chunk", UploadChunk(run="r1", counter=header.counter, index=0, data=pieces[0])
    )
    world.say(device, "offer", Offer(header=header, chunk_bytes=1024))
    effects: list[do.Effect] = []
    for index, piece in enumerate(pieces):
        bad = bytes([piece[0] ^ 1]) + piece[1:]
        effects += world.say(
            device, "chunk", UploadChunk(run="r1", counter=header.counter, index=index, data=bad)
        )
    receipt = world.receipt(effects)
    assert (receipt.outcome, receipt.reason, receipt.residual) == ("rejected", "bad-hash", "restore")
    assert world.core.runs["r1"].accumulator.num_updates == 0


def test_every_new_chunk_is_answered_with_what_is_still_wanted() -> None:
    world = fleet("a", "b", "c")
    header, pieces = offered(world)
    assert len(pieces) > 1
    device = world.devices["a"]
    world.say(device, "offer", Offer(header=header, chunk_bytes=1024))
    world.say(device, "chunk", UploadChunk(run="r1", counter=header.counter, index=1, data=pieces[1]))
    assert [c.have[0] for c in world.sent(Credit)] == [0b00, 0b10]


def test_an_upload_needs_a_lease() -> None:
    world = fleet()
    header, _ = offered(world)
    lied = header.model_copy(update={"lease": 999})
    receipt = world.receipt(world.say(world.devices["a"], "offer", Offer(header=lied, chunk_bytes=1024)))
    assert (receipt.reason, receipt.residual) == ("no-lease", "restore")
    assert not world.sent(Credit)


def test_uploads_that_stand_still_make_room() -> None:
    uploads = Uploads()
    world = fleet()
    header = offered(world)[0].model_copy(update={"payload": blob_ref(bytes(100))})

    def offer(device: str, now: float, budget_bytes: int = 250) -> int:
        message = Offer(header=header, chunk_bytes=1024)
        credit = uploads.offer(device, message, max_bytes=10**6, budget_bytes=budget_bytes, now=now)
        return credit.window

    assert [offer(name, now=0.0) for name in "abc"] == [4, 4, 0]
    assert offer("b", now=100.0) == 4
    assert offer("c", now=130.0) == 4, "a has stood still for longer than IDLE_S"
    assert offer("d", now=130.0) == 0
    uploads.forget(but_of=None)
    assert uploads.held_bytes == 0
    assert offer("e", now=130.0, budget_bytes=50) == 4, "one that is larger than the budget goes alone"
    assert offer("f", now=130.0, budget_bytes=50) == 0


def test_an_upload_that_is_only_ever_offered_makes_room_in_the_end() -> None:
    uploads = Uploads()
    header = offered(fleet())[0].model_copy(update={"payload": blob_ref(bytes(2_048))})
    message = Offer(header=header, chunk_bytes=1_024)

    def offer(device: str, now: float) -> int:
        return uploads.offer(device, message, max_bytes=10**6, budget_bytes=5_000, now=now).window

    assert [offer(name, 0.0) for name in ("slow", "idle", "other")] == [4, 4, 0]
    for now in range(60, 600, 60):
        offer("slow", now)
        offer("idle", now)
    chunk = UploadChunk(run=header.run, counter=header.counter, index=0, data=bytes(1_024))
    assert uploads.chunk("slow", chunk, now=590.0) is not None
    assert offer("other", 590.0) == 0, "both have been offered a moment ago"
    assert offer("other", 601.0) == 4, "nothing of the one came in ten minutes"
    assert uploads.chunk("idle", chunk, now=602.0) is None
    assert uploads.chunk("slow", chunk.model_copy(update={"index": 1}), now=603.0) is not None


def test_no_more_uploads_are_open_than_a_broker_can_queue_the_chunks_of() -> None:
    world = fleet("a", *(f"dev-{number}" for number in range(80)))
    header, _ = offered(world)
    windows = []
    for number in range(80):
        theirs = header.model_copy(update={"lease": world.core.runs["r1"].cohort_lease})
        world.say(world.devices[f"dev-{number}"], "offer", Offer(header=theirs, chunk_bytes=1024))
    windows = [credit.window for credit in world.sent(Credit)]
    assert sum(windows) <= 1_000 // 4
    assert windows == [4] * 62 + [0] * (len(windows) - 62)


def test_an_offer_larger_than_any_update_is_refused_before_memory_is_taken() -> None:
    world = fleet()
    header = world.update("a", 0.1).header
    huge = header.model_copy(update={"payload": header.payload.model_copy(update={"size": 10**9})})
    effects = world.say(world.devices["a"], "offer", Offer(header=huge, chunk_bytes=100_000))
    assert not world.sent(Credit)
    receipt = world.receipt(effects)
    assert (receipt.reason, receipt.residual) == ("too-large", "discard")


def test_chunks_and_the_announcement_are_answered_to_who_asks() -> None:
    world = fleet()
    world.say(world.devices["a"], "hello", Hello())
    assert world.announcement().manifest.version == 0
    world.effects.clear()
    world.say(world.devices["a"], "get", Get(run="r1", version=0, blob="snapshot", index=0))
    chunk = world.sent(ModelChunk)[0]
    assert hashlib.sha256(chunk.data).digest() == chunk.ref.sha256
    world.effects.clear()
    for get in (
        Get(run="r1", version=9, blob="delta", index=0),
        Get(run="x", version=0, blob="snapshot", index=0),
    ):
        world.say(world.devices["a"], "get", get)
    assert not world.sent(ModelChunk)


# What only a fresh pair of eyes found


@pytest.mark.parametrize("depth", [20, 400, 5_000])
def test_deep_nesting_ends_nothing(depth: int) -> None:
    import msgpack  # noqa: PLC0415

    world = fleet()
    nested: object = {}
    for _ in range(min(depth, 900)):
        nested = {"a": nested}
    bodies = [msgpack.packb([1, "presence", "z", 1, 1, bytes(8), nested])] if depth < 1000 else []
    bodies += [b"\x91" * depth, b"\x97" + b"\x91" * depth + b"\xc0" * 7]
    for content in bodies:
        packet = msgpack.packb([content, bytes(64)])
        for topic in ("fedmq/v1/home/dev/z/presence", "fedmq/v1/home/coordinator/status"):
            world.tell(e.PacketArrived(topic, packet))
    assert world.core.runs["r1"].round_open


def test_a_huge_but_finite_update_is_refused_from_the_first_on() -> None:
    world = fleet()
    receipt = rejected(world, world.update("a", 3e38))
    assert (receipt.reason, receipt.residual) == ("norm", "discard")


def test_weight_is_not_had_for_the_asking() -> None:
    world = fleet("a", "b", "c")
    for _ in range(2):
        for name in "abc":
            world.send(name, 0.1)
    world.send("a", 0.1, num_examples=10**9)
    fact = world.of(f.UpdateAccepted)[-1]
    assert isinstance(fact, f.UpdateAccepted)
    assert fact.weight == 100 * 10


def test_an_id_with_a_line_break_is_no_id() -> None:
    world = fleet()
    key = SigningKey(bytes(32))
    birth = Presence(online=True, session=1, public_key=key.public_key, tasks=[TASK])
    topic = "fedmq/v1/home/dev/evil\n/presence"
    world.tell(e.PacketArrived(topic, Sealer(sender="evil\n", epoch=1, key=key).seal(topic, birth)))
    assert "evil\n" not in world.core.state.devices


def test_an_evaluation_of_a_version_that_does_not_exist_is_dropped() -> None:
    world = fleet()
    world.send(
        "a", 0.1, evaluation={"version": 999, "num_examples": 5, "loss": 0.0, "metrics": {"accuracy": 1.0}}
    )
    assert world.core.runs["r1"].federated == {}


def test_a_goodbye_is_journaled_once_however_often_it_comes() -> None:
    world = fleet()
    device = world.devices["a"]
    goodbye = Presence(online=False, session=1, public_key=device.sealer.public_key, traffic=(10, 20))
    for _ in range(5):
        world.say(device, "presence", goodbye)
    assert len(world.of(f.TrafficSeen)) == 1
    assert world.core.state.devices["a"].gone_by == "its goodbye"


def test_a_hello_is_answered_with_the_key_and_the_announcement() -> None:
    key = SigningKey(bytes(32))
    world = World()
    world.tell(e.CoordinatorStarted(epoch=3, public_key=key.public_key))
    world.join("a")
    world.join("b")
    world.start_run(settings(rounds=9))
    world.effects.clear()
    world.say(world.devices["a"], "hello", Hello())
    assert [(s.online, s.session, s.public_key) for s in world.sent(Status)] == [(True, 3, key.public_key)]
    assert world.announcement().run == "r1"


def test_a_hello_is_answered_with_the_lease_that_no_announcement_says() -> None:
    world = World()
    world.join("a")
    world.start_run(settings(mode="fedasync", rounds=9))
    world.join("b")
    held = world.core.runs["r1"].leases["b"]
    world.effects.clear()
    world.say(world.devices["b"], "hello", Hello())
    assert [lease.lease for lease in world.sent(Lease)] == [held.lease]


def test_many_hellos_are_not_each_answered_to_all() -> None:
    world = World()
    world.tell(e.CoordinatorStarted(epoch=3, public_key=SigningKey(bytes(32)).public_key))
    for name in "abc":
        world.join(name)
    world.start_run(settings(rounds=9))
    world.effects.clear()
    for name in "abc":
        world.say(world.devices[name], "hello", Hello())
    assert len(world.sent(Status)) == 1, "the status goes to everybody"
    assert len(world.sent(Announcement)) == 3, "the announcement to each who asks"
    world.pass_time(11)
    world.effects.clear()
    world.say(world.devices["c"], "hello", Hello())
    assert len(world.sent(Status)) == 1


def test_a_late_update_is_held_against_what_was_usual_when_its_version_was_published() -> None:
    world = fleet("a", "b", "c", selection={"deadline_factor": 0, "round_timeout_s": 5})
    for _ in range(2):
        for name in "abc":
            world.send(name, 1.0)
    lease, base = world.core.runs["r1"].leases["c"].lease, world.core.runs["r1"].version
    for _ in range(4):
        world.send("a", 0.01)
        world.send("b", 0.01)
        world.pass_time(6)
    late = world.send("c", 1.0, lease=lease, base=base)
    assert late.outcome == "accepted", (
        "norms have fallen a hundredfold since, but it is not to blame for that"
    )
