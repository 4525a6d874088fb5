"""Snapshots, deltas, updates: one model bit for bit by every way, and nothing lost on the way up."""

from __future__ import annotations

import hashlib
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import (
    CodecSpec,
    apply_delta,
    blob,
    decode_snapshot,
    decode_update,
    encode_delta,
    encode_seeded,
    encode_snapshot,
    encode_update,
    is_seeded,
    replica_sha256,
    requantise,
    snapshot_codec,
)
from fedmq_protocol.codecs.seeded import Recipe, Segment, generate
from fedmq_protocol.errors import CodecError
from fedmq_protocol.schema import TensorEntry, TensorSchema

SCHEMA = TensorSchema(
    entries=(
        TensorEntry(name="conv.weight", shape=(20, 10), dtype="float32", role="parameter"),
        TensorEntry(name="bn.running_mean", shape=(7,), dtype="float32", role="buffer"),
        TensorEntry(name="bn.num_batches_tracked", shape=(), dtype="int64", role="local"),
        TensorEntry(name="head.weight", shape=(9, 3), dtype="float16", role="frozen"),
        TensorEntry(name="tied.weight", shape=(20, 10), dtype="float32", role="tied", tied_to="conv.weight"),
        TensorEntry(name="fc.bias", shape=(31,), dtype="float32", role="parameter"),
    )
)
NP, NF, NB = 231, 27, 7


def vector(seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=SCHEMA.size) * scale).astype(np.float32)


def test_the_schema_counts_by_role() -> None:
    assert (SCHEMA.num_parameters, SCHEMA.num_frozen, SCHEMA.num_buffers, SCHEMA.size) == (
        NP,
        NF,
        NB,
        NP + NF + NB,
    )
    assert [e.name for e in SCHEMA.vector_entries()] == [
        "conv.weight",
        "fc.bias",
        "head.weight",
        "bn.running_mean",
    ]


def test_the_schema_hash_tells_models_apart() -> None:
    other = SCHEMA.model_copy(update={"entries": SCHEMA.entries[:-1]})
    assert other.hash != SCHEMA.hash
    assert TensorSchema.model_validate(SCHEMA.model_dump()).hash == SCHEMA.hash


@pytest.mark.parametrize("codec", ["int8", "int4", "float32"])
def test_who_decodes_a_snapshot_holds_what_its_maker_holds(codec: str) -> None:
    data, replica = encode_snapshot(vector(1), SCHEMA, codec)
    assert decode_snapshot(data, SCHEMA).tobytes() == replica.tobytes()
    assert snapshot_codec(data) == codec
    assert np.array_equal(replica[NP + NF :], vector(1)[NP + NF :]), "buffers travel in full precision"


def test_a_float32_snapshot_is_exact() -> None:
    assert np.array_equal(encode_snapshot(vector(2), SCHEMA, "float32")[1], vector(2))


SEGMENTS = (Segment.uniform(200, 0.1), Segment.constant(20, 1.0), Segment.normal(NP + NF - 220, 0.02))


@pytest.mark.parametrize("rebase", ["int8", "int4", "float32"])
def test_a_start_from_a_seed_is_a_snapshot_of_a_few_bytes(rebase: str) -> None:
    buffers = vector(5)[NP + NF :]
    data = encode_seeded(17, SEGMENTS, buffers, SCHEMA, rebase)
    assert len(data) < 14 + 9 * len(SEGMENTS) + 4 * NB + 12
    assert is_seeded(data)
    assert snapshot_codec(data) == rebase, "what a rebase uses is stated"
    weights = np.empty(NP + NF, np.float32)
    generate(Recipe(17, SEGMENTS, 0), weights)
    replica = decode_snapshot(data, SCHEMA)
    assert np.array_equal(replica, np.concatenate([weights, buffers]))
    later, requantised = encode_snapshot(replica, SCHEMA, rebase)
    assert snapshot_codec(later) == rebase
    assert not is_seeded(later)
    assert np.array_equal(requantise(replica, SCHEMA, rebase), requantised)


def test_a_recipe_for_another_model_is_refused() -> None:
    buffers = vector(5)[NP + NF :]
    with pytest.raises(ValueError, match="another model"):
        encode_seeded(1, SEGMENTS[:2], buffers, SCHEMA)
    with pytest.raises(CodecError, match="snapshot"):
        encode_seeded(1, SEGMENTS, buffers, SCHEMA, "topk-log4")
    weights, coded = msgpack.unpackb(encode_seeded(1, SEGMENTS, buffers, SCHEMA))
    for rebase in (0x00, 0x0F, 0x14, 0xFF):
        damaged = msgpack.packb([weights[:5] + bytes([rebase]) + weights[6:], coded])
        with pytest.raises(CodecError) as caught:
            decode_snapshot(damaged, SCHEMA)
        assert caught.value.reason == "unknown-codec"


def test_a_recipe_is_no_update_and_no_delta() -> None:
    """In an update a few bytes would cost the coordinator a whole model."""
    schema = TensorSchema(entries=tuple(entry for entry in SCHEMA.entries if entry.role != "frozen"))
    data = encode_seeded(1, (Segment.uniform(NP, 0.1),), vector(5)[NP + NF :], schema)
    with pytest.raises(CodecError) as caught:
        decode_update(data, schema)
    assert caught.value.reason == "unknown-codec"
    replica = np.zeros(schema.size, np.float32)
    with pytest.raises(CodecError):
        apply_delta(replica, data, schema)
    assert not replica.any()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), min_size=1, max_size=12),
    st.sampled_from(["topk-log4", "topk-sign", "topk-int8", "int4", "int8", "float32"]),
)
def test_late_joiners_and_chain_holders_hold_the_same_bits(steps: list[tuple[int, bool]], codec: str) -> None:
    weights = vector(3)
    snapshot, published = encode_snapshot(weights, SCHEMA)
    holder = decode_snapshot(snapshot, SCHEMA)
    joiner = holder.copy()
    for seed, rebase in steps:
        weights = weights + vector(seed, 0.01)
        delta = encode_delta(weights, published, SCHEMA, CodecSpec(codec, 0.05))
        for replica in (published, holder, joiner):
            apply_delta(replica, delta, SCHEMA)
        if rebase:
            snapshot, published = encode_snapshot(published, SCHEMA)
            holder = requantise(holder, SCHEMA)
            joiner = decode_snapshot(snapshot, SCHEMA)
        assert replica_sha256(published) == replica_sha256(holder) == replica_sha256(joiner)


def test_a_dense_delta_that_is_bad_at_its_end_leaves_the_replica_as_it_was() -> None:
    n = 100_000
    entry = TensorEntry(name="fc.weight", shape=(n,), dtype="float32", role="parameter")
    change = np.ones(n, np.float32)
    change[-1] = np.nan
    weights = struct.pack("<BI", 0x01, n) + b"\0" + change.tobytes()
    replica = np.full(n, 2.0, np.float32)
    with pytest.raises(CodecError) as caught:
        apply_delta(
            replica, blob.write_payload(weights, np.empty(0, np.float32)), TensorSchema(entries=(entry,))
        )
    assert caught.value.reason == "not-finite"
    assert (replica == 2.0).all()


def test_the_replica_follows_the_private_weights() -> None:
    """Tracked deltas do not drift: with the target held still, the replica reaches it up to the quantiser's floor."""
    target = vector(4)
    _, replica = encode_snapshot(np.zeros(SCHEMA.size, dtype=np.float32), SCHEMA)
    far = float(np.linalg.norm(target[:NP] - replica[:NP]))
    for _ in range(120):
        apply_delta(replica, encode_delta(target, replica, SCHEMA, CodecSpec("topk-log4", 0.05)), SCHEMA)
    assert float(np.linalg.norm(target[:NP] - replica[:NP])) < 1e-3 * far


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["topk-log4", "topk-sign", "topk-int8", "int8", "float32"]))
def test_sent_plus_residual_is_what_there_was(seed: int, codec: str) -> None:
    residual: NDArray[np.float32] | None = None
    for turn in range(4):
        delta = vector(seed + turn, 0.1)
        before = delta[:NP] if residual is None else delta[:NP] + residual
        data, residual = encode_update(delta, residual, SCHEMA, CodecSpec(codec, 0.05))
        update = decode_update(data, SCHEMA)
        assert np.array_equal(update.parameters.to_dense() + residual, before + np.float32(0))
        assert np.array_equal(update.buffers, delta[NP + NF :])


def test_the_norm_is_over_all_that_was_sent() -> None:
    delta = vector(6)
    data, _ = encode_update(delta, None, SCHEMA, CodecSpec("float32"))
    expected = np.linalg.norm(np.concatenate([delta[:NP], delta[NP + NF :]]).astype(np.float64))
    assert decode_update(data, SCHEMA).norm() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_the_protocols_error(data: bytes) -> None:
    replica = vector(7)
    before = hashlib.sha256(replica.tobytes()).digest()
    for decode in (
        lambda: decode_snapshot(data, SCHEMA),
        lambda: decode_update(data, SCHEMA),
        lambda: apply_delta(replica, data, SCHEMA),
    ):
        with pytest.raises(CodecError):
            decode()
    assert hashlib.sha256(replica.tobytes()).digest() == before, "a bad delta leaves the replica as it was"


def test_a_blob_is_read_in_each_form_that_its_lengths_may_have() -> None:
    data, replica = encode_snapshot(vector(9), SCHEMA)
    weights, buffers = blob.read(data)
    for head, width in ((b"\xc4", 1), (b"\xc5", 2), (b"\xc6", 4)):
        if len(weights) < 1 << 8 * width:
            tail = b"\xc4" + bytes([len(buffers)]) + bytes(buffers)
            other = b"\x92" + head + len(weights).to_bytes(width, "big") + bytes(weights) + tail
            assert decode_snapshot(other, SCHEMA).tobytes() == replica.tobytes()
    assert msgpack.unpackb(data) == [bytes(weights), bytes(buffers)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x92",
        b"\x92\xc4",
        b"\x92\xc6\xff\xff",
        b"\x92\xc6\xff\xff\xff\xff" + bytes(40),
        b"\x92\xc4\x00",
        b"\x92\xc4\x01\x00\xc4\x01\x00\x00",
        b"\x91\xc4\x00",
        b"\x93\xc4\x00\xc4\x00\xc4\x00",
        b"\xdc\x00\x02\xc4\x00\xc4\x00",
        b"\x92\xa0\xa0",
        b"\x92\x91\xc4\x00\xc4\x00",
    ],
)
def test_what_is_no_blob_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        blob.read(data)


def test_another_schema_is_noticed() -> None:
    data, _ = encode_snapshot(vector(8), SCHEMA)
    smaller = TensorSchema(entries=SCHEMA.entries[:1])
    with pytest.raises(CodecError):
        decode_snapshot(data, smaller)
