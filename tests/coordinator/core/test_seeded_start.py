"""A run that starts from a seed: a recipe travels, everybody makes the same bits of it, and rebases go on as ever."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.publication import rebuild
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import (
    apply_delta,
    decode_snapshot,
    encode_seeded,
    encode_snapshot,
    is_seeded,
    max_encoded_bytes,
    replica_sha256,
    requantise,
    snapshot_codec,
)
from fedmq_protocol.codecs.registry import CodecSpec, names
from fedmq_protocol.codecs.seeded import Segment
from fedmq_protocol.messages import ModelChunk, Notice
from tests.coordinator.core.world import SCHEMA, TASK, World, assert_same_bits, settings

SPARSE = {"up": "topk-log4", "density": 0.1, "down": "topk-log4", "down_density": 0.1, "snapshot": "int4"}
BUFFERS = np.linspace(0, 1, SCHEMA.num_buffers, dtype=np.float32)


def recipe(rebase: str = "int4") -> bytes:
    return encode_seeded(3, [Segment.uniform(SCHEMA.num_parameters, 0.1)], BUFFERS, SCHEMA, rebase)


def begin(*, rounds: int = 100, codecs: tuple[str, ...] = names()) -> World:
    world = World()
    for name in "abc":
        world.join(name, codecs=codecs)
    run_settings = settings(rounds=rounds, compression=SPARSE, strategy={"max_norm_ratio": 1e6})
    world.tell(e.RunRequested("r1", run_settings, TASK, SCHEMA, None, recipe=recipe()))
    return world


def step(world: World, rng: np.random.Generator) -> None:
    run = world.core.runs["r1"]
    version = run.version
    for name, held in list(run.leases.items()):
        world.send(name, rng.normal(size=SCHEMA.size).astype(np.float32), lease=held.lease)
    assert run.version == version + 1


def test_the_first_snapshot_is_the_recipe_and_what_it_makes_is_the_model() -> None:
    world = begin()
    run = world.core.runs["r1"]
    chunks = [chunk for chunk in world.sent(ModelChunk) if chunk.version == 0]
    assert b"".join(chunk.data for chunk in chunks) == recipe()
    assert len(recipe()) < 90
    manifest = run.model.manifest()
    assert manifest.snapshot == blob_ref(recipe())
    made = decode_snapshot(recipe(), SCHEMA)
    assert manifest.replica_hash == replica_sha256(made)
    assert run.model.weights.tobytes() == made.tobytes(), "nothing was rounded away: no codec stood between"
    published, created = world.of(f.VersionPublished)[0], world.of(f.RunCreated)[0]
    assert isinstance(published, f.VersionPublished)
    assert isinstance(created, f.RunCreated)
    assert published.private is None, "the recipe says all of it"
    assert created.initial.ref.size == 0
    assert_same_bits(world.core, world.replayed())


def test_a_rebase_comes_when_a_snapshot_would_be_shorter_and_is_in_the_codec_that_was_named() -> None:
    """A device follows from the recipe on, by the document alone; a late one comes in at the rebase."""
    world = begin()
    run = world.core.runs["r1"]
    device = decode_snapshot(run.model.snapshot.data, SCHEMA)
    codec = snapshot_codec(run.model.snapshot.data)
    limit = max_encoded_bytes(SCHEMA.num_parameters, CodecSpec("int4")) + 4 * SCHEMA.num_buffers + 6
    rng = np.random.default_rng(5)
    for turn in range(12):
        chain, base = run.model.chain_bytes, run.model.base
        step(world, rng)
        if turn % 3 == 0:
            world.restart()
            run = world.core.runs["r1"]
        delta = run.model.deltas[run.version].data
        apply_delta(device, delta, SCHEMA)
        if run.model.base == run.version:
            device = requantise(device, SCHEMA, codec)
            assert not is_seeded(run.model.snapshot.data)
            assert snapshot_codec(run.model.snapshot.data) == "int4"
            assert decode_snapshot(run.model.snapshot.data, SCHEMA).tobytes() == device.tobytes()
            assert base > 0 or chain + len(delta) >= limit
        else:
            assert base > 0 or chain + len(delta) < limit
        assert device.tobytes() == run.model.replica.tobytes()
        assert_same_bits(world.core, world.replayed())
    assert run.model.base > 1, "the chain was rebased, but not at once"
    published = [fact for fact in world.of(f.VersionPublished) if isinstance(fact, f.VersionPublished)]
    assert rebuild(SCHEMA, published, 0).tobytes() == decode_snapshot(recipe(), SCHEMA).tobytes()


def test_a_device_that_cannot_draw_is_not_selected_and_is_told_why() -> None:
    world = begin(codecs=tuple(name for name in names() if name != "seeded/1"))
    run = world.core.runs["r1"]
    assert not run.leases
    assert all("seeded/1" in notice.detail for notice in world.sent(Notice))
    assert all("compression.start = snapshot" in notice.detail for notice in world.sent(Notice))
    assert len(world.sent(Notice)) == 3
    for name in "abc":
        world.join(name, session=2, codecs=names())
    assert set(run.leases) == {"a", "b"}, "a round opens with two"


@pytest.mark.parametrize("start", ["auto", "snapshot"])
def test_what_travels_and_why_is_shown_and_logged(start: str) -> None:
    world = World()
    why = "conv.weight is not drawn as a recipe can: it does not lie around zero" if start == "auto" else ""
    world.tell(
        e.RunRequested(
            "r1",
            settings(compression={"start": start}),
            TASK,
            SCHEMA,
            np.zeros(SCHEMA.size, np.float32),
            why_no_recipe=why,
        )
    )
    notes = [effect.text for effect in world.effects if isinstance(effect, do.Note)]
    assert any(why in note for note in notes) == bool(why) or not why
    shown = world.core.run_view("r1", now=world.now).start
    assert shown == ("the first weights travel" + (f": {why}" if why else ""))
    assert world.replayed().run_view("r1", now=world.now).start == shown
    seeded = begin().core.run_view("r1", now=world.now).start
    assert seeded == f"from a seed: the first weights travel as a recipe of {len(recipe())} bytes"


def test_a_recipe_and_the_snapshot_of_what_it_makes_are_the_same_model() -> None:
    """A late joiner may hold either; the float32 snapshot of the recipe's weights is exact."""
    made = decode_snapshot(recipe("float32"), SCHEMA)
    data, replica = encode_snapshot(made, SCHEMA, "float32")
    assert replica.tobytes() == made.tobytes()
    assert requantise(made, SCHEMA, snapshot_codec(recipe("float32"))).tobytes() == replica.tobytes()
    assert len(data) > 4 * SCHEMA.num_parameters * 0.8
