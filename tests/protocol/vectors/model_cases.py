"""Cases of schemas, sampling, chunks, hashes, and of the model's blobs: snapshots, deltas, updates, rebases."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import numpy as np

from fedmq_protocol.chunks import NO_HASH, Assembly, blob_ref, chain_hash, split
from fedmq_protocol.codecs import (
    CodecSpec,
    apply_delta,
    decode_snapshot,
    decode_update,
    encode_delta,
    encode_snapshot,
    encode_update,
    replica_sha256,
    requantise,
)
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import RING
from fedmq_protocol.messages import Turn
from fedmq_protocol.sampling import has_turn, place, sample
from fedmq_protocol.schema import TensorEntry, TensorSchema
from tests.protocol.codecs.make_vectors import wave
from tests.protocol.vectors.form import Case, Plain, Vector, entries, floats, raised

PLAIN_SCHEMA = TensorSchema(
    entries=(
        TensorEntry(name="0.weight", shape=(8, 16), dtype="float32", role="parameter"),
        TensorEntry(name="0.bias", shape=(8,), dtype="float32", role="parameter"),
    )
)
FULL_SCHEMA = TensorSchema(
    entries=(
        TensorEntry(name="embed.weight", shape=(10, 9), dtype="float16", role="frozen"),
        TensorEntry(name="norm.running_mean", shape=(3,), dtype="float32", role="buffer"),
        TensorEntry(name="norm.num_batches_tracked", shape=(), dtype="int64", role="local"),
        TensorEntry(name="out.weight", shape=(10, 9), dtype="float32", role="parameter"),
        TensorEntry(name="out.scale", shape=(), dtype="float32", role="parameter"),
        TensorEntry(name="again.weight", shape=(10, 9), dtype="float32", role="tied", tied_to="out.weight"),
        TensorEntry(name="nothing", shape=(0, 4), dtype="bfloat16", role="parameter"),
    )
)
IRIS_SCHEMA = TensorSchema(
    entries=tuple(
        TensorEntry(name=f"{place}.{what}", shape=shape, dtype="float32", role="parameter")
        for place, what, shape in (
            (0, "weight", (32, 4)),
            (0, "bias", (32,)),
            (2, "weight", (32, 32)),
            (2, "bias", (32,)),
            (4, "weight", (3, 32)),
            (4, "bias", (3,)),
        )
    )
)
_SEED = bytes(range(16))


def schema_cases() -> list[Case]:
    """Schemas and their hashes."""
    named = {"plain": PLAIN_SCHEMA, "every role": FULL_SCHEMA, "iris": IRIS_SCHEMA}
    return [
        Case(
            name,
            "schema",
            {"entries": entries(schema)},
            {
                "hash": schema.hash,
                "parameters": schema.num_parameters,
                "frozen": schema.num_frozen,
                "buffers": schema.num_buffers,
            },
        )
        for name, schema in named.items()
    ]


def sampling_cases() -> list[Case]:
    """Who takes part by the rule, the borders included."""
    asked: list[tuple[str, int, float]] = [
        ("dev-1", 1, 0.5),
        ("dev-2", 1, 0.5),
        ("dev-1", 2, 0.5),
        ("a", 2**53 - 1, 0.1),
        ("dev-1", 1, 0.0),
        ("dev-1", 1, 1.0),
        ("dev-1", 1, sample(_SEED, 1, "dev-1")),
        ("dev-1", 1, float(np.nextafter(sample(_SEED, 1, "dev-1"), 1.0))),
    ]
    cases = []
    for device, number, rate in asked:
        fraction = sample(_SEED, number, device)
        given = {"seed": _SEED.hex(), "round": number, "device": device, "rate": rate}
        gives = {"fraction": fraction, "member": fraction < rate}
        cases.append(Case(f"{device}, round {number}, rate {rate}", "sample", given, gives))
    return [*cases, *_turn_cases()]


def _turn_cases() -> list[Case]:
    """Arcs that begin and end at a device, wrap around, are empty, and are the whole ring."""
    here = place("dev-1")
    asked = [
        ("dev-1", 0, RING),
        ("dev-1", here, 1),
        ("dev-1", here, 0),
        ("dev-1", 0, here),
        ("dev-1", 0, here + 1),
        ("dev-1", (here + 1) % RING, RING - 1),
        ("dev-1", (here + 1) % RING, RING),
        ("dev-2", RING - 1, RING // 2),
        ("a", RING // 2, RING // 2),
    ]
    return [
        Case(
            f"{device}, an arc of {span} from {start}",
            "turn",
            {"start": start, "span": span, "device": device},
            {"place": place(device), "mine": has_turn(Turn(start=start, span=span), device)},
        )
        for device, start, span in asked
    ]


def chunk_cases() -> list[Case]:
    """Cutting, and putting together again: in any order, twice, with gaps, and wrongly."""
    blob = bytes(i * 7 % 256 for i in range(2_500))
    cases = []
    for name, data, chunk_bytes in (
        ("three, the last one shorter", blob, 1_024),
        ("two that fill their chunks", blob[:2_048], 1_024),
        ("one", blob[:100], 1_024),
        ("nothing", b"", 1_024),
    ):
        ref = blob_ref(data)
        gives = {
            "size": ref.size,
            "sha256": ref.sha256.hex(),
            "chunks": [chunk.hex() for chunk in split(data, chunk_bytes)],
        }
        cases.append(Case(f"split: {name}", "split", {"data": data.hex(), "chunk_bytes": chunk_bytes}, gives))
    pieces = split(blob, 1_024)
    nine = split(blob, 300)
    cases += [
        _assembly("in order", blob, 1_024, [(0, pieces[0]), (1, pieces[1]), (2, pieces[2])]),
        _assembly("backwards", blob, 1_024, [(2, pieces[2]), (1, pieces[1]), (0, pieces[0])]),
        _assembly("some of them twice", blob, 1_024, [(i, pieces[i]) for i in (1, 1, 0, 1, 2, 2)]),
        _assembly("a gap", blob, 1_024, [(2, pieces[2]), (0, pieces[0])]),
        _assembly("nine, two of them there", blob, 300, [(8, nine[8]), (3, nine[3])]),
        _assembly("nothing is one empty chunk", b"", 1_024, [(0, b"")]),
        _assembly("no such index", blob, 1_024, [(3, pieces[2])]),
        _assembly("a chunk too short", blob, 1_024, [(1, pieces[1][:-1])]),
        _assembly("a last chunk too long", blob, 1_024, [(2, pieces[1])]),
        _assembly("another content", blob, 1_024, [(0, pieces[1]), (1, pieces[0]), (2, pieces[2])]),
        _assembly("more chunks than there may be", b"", 1, [], size=65_537),
    ]
    return cases


def _assembly(
    name: str, data: bytes, chunk_bytes: int, chunks: list[tuple[int, bytes]], *, size: int | None = None
) -> Case:
    ref = blob_ref(data).model_copy(update={"size": len(data) if size is None else size})
    given: Plain = {
        "size": ref.size,
        "sha256": ref.sha256.hex(),
        "chunk_bytes": chunk_bytes,
        "chunks": [{"index": index, "data": chunk.hex()} for index, chunk in chunks],
    }
    try:
        assembly = Assembly(ref, chunk_bytes)
        taken = [assembly.add(index, chunk) for index, chunk in chunks]
        gives: Plain = {"taken": taken, "have": assembly.have().hex(), "missing": assembly.missing()}
        if assembly.complete:
            gives["data"] = assembly.result().hex()
    except RemoteError as error:
        return Case(f"assemble: {name}", "assemble", given, error=raised(error))
    return Case(f"assemble: {name}", "assemble", given, gives)


def chain_cases() -> list[Case]:
    """Chained hashes: of a snapshot at version 0, then of deltas."""
    contents = [hashlib.sha256(bytes([i])).digest() for i in range(4)]
    chain, before = [], NO_HASH
    for content in contents:
        before = chain_hash(before, content)
        chain.append(before.hex())
    return [Case("version 0 to 3", "chain", {"sha256": [c.hex() for c in contents]}, {"chain": chain})]


def _model(schema: TensorSchema, start: int = 0) -> Vector:
    return np.ascontiguousarray(wave(schema.size + start, 3)[start:])


def blob_cases() -> list[Case]:
    """A snapshot, a delta, a rebase, an update and its residual, of a model with and without frozen and buffers."""
    cases = []
    for title, schema in (("plain", PLAIN_SCHEMA), ("every role", FULL_SCHEMA)):
        for codec in ("int8", "int4", "float32"):
            snapshot, replica = encode_snapshot(_model(schema), schema, codec)
            gives = {
                "replica": floats(replica),
                "replica_hash": replica_sha256(replica).hex(),
                "chain_hash": chain_hash(NO_HASH, hashlib.sha256(snapshot).digest()).hex(),
            }
            given = {"entries": entries(schema), "snapshot": snapshot.hex()}
            cases.append(Case(f"snapshot: {title}, {codec}", "snapshot", given, gives))
        _, replica = encode_snapshot(_model(schema), schema, "int8")
        target = (replica + _model(schema, 5) / np.float32(16)).astype(np.float32)
        for codec, density in (("topk-log4", 0.1), ("topk-sign", 0.1), ("topk-int8", 0.05), ("int8", 1.0)):
            delta = encode_delta(target, replica, schema, CodecSpec(codec, density))
            cases += [_delta(f"{title}, {codec}", schema, replica, delta, None)]
        delta = encode_delta(target, replica, schema, CodecSpec("topk-log4", 0.1))
        cases += [
            _delta(f"{title}, rebase to {codec}", schema, replica, delta, codec) for codec in ("int8", "int4")
        ]
        cases += _updates(title, schema)
    return [*cases, _cancellation(), *_bad_blobs()]


def _delta(name: str, schema: TensorSchema, replica: Vector, delta: bytes, rebase: str | None) -> Case:
    after = replica.copy()
    apply_delta(after, delta, schema)
    if rebase is not None:
        after = requantise(after, schema, rebase)
    given: Plain = {"entries": entries(schema), "replica": floats(replica), "delta": delta.hex()}
    if rebase is not None:
        given["rebase"] = rebase
    gives = {"replica": floats(after), "replica_hash": replica_sha256(after).hex()}
    return Case(f"delta: {name}", "delta", given, gives)


def _cancellation() -> Case:
    """A delta that leaves zeros and subnormals behind: all of them are +0."""
    n = PLAIN_SCHEMA.num_parameters
    replica = np.zeros(PLAIN_SCHEMA.size, np.float32)
    replica[:4] = [1.5, -(2.0**-125), 2.0**-126, -0.75]
    change = np.zeros(n, np.float32)
    change[:4] = [-1.5, 2.0**-125 * 1.5, -(2.0**-126) * 1.25, 0.75]
    blob: bytes = msgpack.packb(
        [b"\x01" + n.to_bytes(4, "little") + b"\x00" + change.tobytes(), bytes.fromhex("010000000000")]
    )
    return _delta("zeros and subnormals", PLAIN_SCHEMA, replica, blob, None)


def _updates(title: str, schema: TensorSchema) -> list[Case]:
    """Three updates with error feedback in a row, each of them also put back, and the question to encode it."""
    cases = []
    residual = np.zeros(schema.num_parameters, np.float32)
    for number, codec in enumerate(("topk-log4", "topk-sign", "topk-int8")):
        change = (_model(schema, 11 * number + 1) / np.float32(64)).astype(np.float32)
        update, left = encode_update(change, residual, schema, CodecSpec(codec, 0.1))
        decoded = decode_update(update, schema)
        parameters = np.zeros(schema.num_parameters, np.float32)
        decoded.parameters.add_to(parameters)
        blob = {"entries": entries(schema), "update": update.hex()}
        gives = {"parameters": floats(parameters), "buffers": floats(decoded.buffers)}
        cases.append(Case(f"update: {title}, {codec}", "update", blob, gives))
        before = {"change": floats(change), "residual": floats(residual)}
        cases.append(
            Case(f"feedback: {title}, {codec}", "feedback", {**blob, **before}, {"residual": floats(left)})
        )
        restored = left.copy()
        decoded.parameters.add_to(restored)
        cases.append(
            Case(
                f"restore: {title}, {codec}",
                "restore",
                {**blob, "residual": floats(left)},
                {"residual": floats(restored)},
            )
        )
        asked: dict[str, Any] = {"entries": entries(schema), "codec": codec, "density": 0.1, **before}
        most = CodecSpec(codec, 0.1).kept(schema.num_parameters)
        cases.append(Case(f"encode: {title}, {codec}", "encode", asked, {"at_most": most}))
        residual = left
    return cases


def _bad_blobs() -> list[Case]:
    plain = entries(PLAIN_SCHEMA)
    snapshot, _ = encode_snapshot(_model(PLAIN_SCHEMA), PLAIN_SCHEMA, "int8")
    other, _ = encode_snapshot(_model(FULL_SCHEMA), FULL_SCHEMA, "int8")
    weights, buffers = msgpack.unpackb(snapshot)
    bad = {
        "of another schema": other,
        "one part": msgpack.packb([weights]),
        "three parts": msgpack.packb([weights, buffers, b""]),
        "a byte too many": snapshot + b"\x00",
        "a byte too few": snapshot[:-1],
        "no msgpack": b"\xc1",
        "str for bin": msgpack.packb(["a", "b"]),
        "an unknown tag": msgpack.packb([b"\x7f" + weights[1:], buffers]),
        "an infinite weight": msgpack.packb(
            [b"\x01" + (136).to_bytes(4, "little") + b"\x00" + bytes.fromhex("0000807f") * 136, buffers]
        ),
    }
    cases = []
    for name, blob in bad.items():
        try:
            decode_snapshot(blob, PLAIN_SCHEMA)
        except RemoteError as error:
            cases.append(
                Case(
                    f"snapshot: {name}",
                    "snapshot",
                    {"entries": plain, "snapshot": blob.hex()},
                    error=raised(error),
                )
            )
        else:
            raise AssertionError(name)
    return cases
