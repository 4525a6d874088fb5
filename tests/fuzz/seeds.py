"""The first inputs of each target: good ones of every kind, and the classics among the bad."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgpack
import numpy as np
import zstandard

from fedmq_coordinator.core.facts import KINDS as FACTS
from fedmq_edge_agent.core.state import AgentState, ModelIndex, RunState, dump_index, dump_state
from fedmq_protocol.codecs import (
    CODECS,
    CodecSpec,
    encode,
    encode_delta,
    encode_snapshot,
    encode_update,
    optional_coders,
)
from fedmq_protocol.codecs.model import encode_seeded
from fedmq_protocol.codecs.seeded import Segment
from fedmq_protocol.messages import (
    KINDS,
    Body,
    Credit,
    Get,
    Hello,
    Lease,
    Notice,
    Offer,
    Presence,
    Receipt,
    Report,
    Update,
    UploadChunk,
    to_plain,
)
from tests.coordinator.core.world import World, settings
from tests.edge_agent.core.test_state import HEADER
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator
from tests.fuzz.targets import LENGTHS, LONG_LENGTHS, SCHEMA, TOPICS, shapes_of

VECTORS: Final = Path(__file__).parents[2] / "protocol" / "vectors" / "codecs.json"


def bodies() -> list[Body]:
    """One good body of every kind."""
    script = ScriptedCoordinator()
    script.publish()
    key = bytes(32)
    return [
        script.announced(1, EVERYBODY, 9.0),
        script.chunks("snapshot", 0)[0],
        Presence(online=True, session=1, public_key=key, tasks=[script.task], traffic=(1, 2)),
        Hello(run="r1", version=0),
        Update(header=HEADER, data=b"abc"),
        Offer(header=HEADER, chunk_bytes=1_024),
        UploadChunk(run="r1", counter=0, index=0, data=b"abc"),
        Credit(run="r1", counter=0, have=b"\x01", window=4),
        Receipt(run="r1", counter=0, outcome="rejected", reason="norm", residual="restore", digest=bytes(8)),
        Lease(run="r1", lease=2, version=0, lease_s=9.0),
        Report(code="busy", detail="so", run="r1", lease=1),
        Get(run="r1", version=0, blob="delta", index=0),
        Notice(code="x", detail="y", session=3),
        script.open(*script.status(), script.key.public_key).body,
    ]


def payloads() -> Iterator[bytes]:
    """Payloads of each codec, and bombs."""
    rng = np.random.default_rng(0)
    for place, n in enumerate(LENGTHS):
        vector = rng.standard_normal(n).astype(np.float32)
        for name, codec in CODECS.items():
            spec = CodecSpec(name, density=0.05, seed=7 if codec.masked else None)
            yield bytes([place, 0]) + encode(vector, spec)[0]
            spec = CodecSpec(name, density=0.05, coders=optional_coders(), seed=7 if codec.masked else None)
            yield bytes([place, 2]) + encode(vector, spec, shapes=shapes_of(n))[0]
    for tag in (0x14, 0x24, 0xF2):
        yield bytes([5, 2]) + struct.pack("<BIII", tag, 400, 0xFFFFFFFF, 0xFFFFFFFF)
    yield bytes([5, 0]) + struct.pack("<BI", 1, 400) + b"\x00" + np.full(400, np.nan, "<f4").tobytes()
    yield bytes([5, 0]) + struct.pack("<BI", 1, 400) + b"\x00" + np.full(400, 1e-40, "<f4").tobytes()


def long_payloads() -> Iterator[bytes]:
    """Payloads of longer vectors, and bombs."""
    rng = np.random.default_rng(2)
    n = LONG_LENGTHS[0]
    vector = (rng.standard_normal(n) * (rng.random(n) < 0.002)).astype(np.float32)  # few
    for name in ("topk-log4", "topk-sign", "topk-int8"):
        for coders in ((), optional_coders()):
            spec = CodecSpec(name, density=0.001, coders=coders)
            yield bytes([0, 0]) + encode(vector, spec)[0]
            yield bytes([0, 2]) + encode(vector, spec, shapes=shapes_of(n))[0]
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 24))
    for tag in (1, 2, 3):
        yield bytes([1, 0]) + struct.pack("<BI", tag, LONG_LENGTHS[1]) + b"\x01" + bomb


def blobs() -> Iterator[bytes]:
    """Snapshots, deltas and updates."""
    rng = np.random.default_rng(1)
    vector = rng.standard_normal(SCHEMA.size).astype(np.float32)
    yield b"\x00" + encode_snapshot(vector, SCHEMA)[0]
    weights = SCHEMA.num_parameters + SCHEMA.num_frozen
    recipe = [Segment.uniform(100, 0.1), Segment.normal(weights - 105, 0.1), Segment.constant(5, 1.0)]
    yield b"\x00" + encode_seeded(3, recipe, vector[weights:], SCHEMA)
    for name, codec in CODECS.items():
        spec = CodecSpec(name, density=0.1, coders=optional_coders(), seed=7 if codec.masked else None)
        yield b"\x00" + encode_delta(vector, np.zeros(SCHEMA.size, np.float32), SCHEMA, spec)
        yield b"\x00" + encode_update(vector, None, SCHEMA, spec)[0]


def nested(depth: int) -> bytes:
    """A list in a list in a list."""
    return b"\x91" * depth + b"\xc0"


def conversation() -> list[tuple[str, bytes]]:
    """The packets of a small federation, as its coordinator's journal and devices made them."""
    world = World()
    world.join("a")
    world.join("b")
    world.start_run(settings(rounds=2))
    for _ in range(2):
        for name in ("a", "b"):
            world.send(name, 0.1)
    return world.journal


def seeds() -> dict[str, list[bytes]]:
    """Target -> inputs."""
    packed = {type(body): msgpack.packb(to_plain(body)) for body in bodies()}
    kinds = list(KINDS)
    by_kind = [
        bytes([place]) + packed[model] for place, model in enumerate(KINDS.values()) if model in packed
    ]
    up = {"hello": 0, "update": 1, "offer": 2, "upload_chunk": 3, "report": 4, "get": 5, "presence": 6}
    down = {"announcement": 0, "lease": 1, "receipt": 2, "credit": 3, "chunk": 4, "notice": 5, "status": 6}
    script = ScriptedCoordinator()
    facts = [dump_fact_at(kind, data) for kind, data in conversation()]
    mqtt = [
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",
        b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a\x82\x06\x00\x01\x00\x01#\x01\x31\x04\x00\x01ab\xc0\x00\xe0\x00",
    ]
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    return {
        "envelope": [
            *[script.seal(TOPICS.announcement, body)[1] for body in bodies()],
            *[script.sealer.seal(TOPICS.announcement, body, packed=True) for body in bodies()],
            msgpack.packb([1, zstandard.ZstdCompressor(level=19).compress(bytes(1 << 24)), bytes(64)]),
            msgpack.packb([nested(1_000), bytes(64)]),
            nested(500),
            b"\xdd\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
        ],
        "body": [*by_kind, *[bytes([place]) + nested(50) for place in range(len(kinds))]],
        "topic": [
            b"dev/a/up/hello",
            b"dev/a/presence",
            b"model/r1/7/s0",
            b"model/r1/9223372036854775808/d1",
            b"////",
        ],
        "payload": [*payloads(), *_from_vectors(vectors)],
        "long_payload": list(long_payloads()),
        "blob": list(blobs()),
        "chunks": [
            bytes([10, 0, 3]) + bytes(byte for index in range(3) for byte in (index, 1)),
            bytes([255, 255, 255]) + bytes(byte for index in range(255) for byte in (index, 1)),
        ],
        "stored": [
            b"\x00" + dump_state(AgentState(runs={"r1": RunState()})),
            b"\x00" + dump_index(ModelIndex()),
            *facts,
        ],
        "coordinator": [bytes([up[kind]]) + packed[KINDS[kind]] for kind in up]
        + [b"\x80" + blob[1:] for blob in blobs()],
        "agent": [bytes([down[kind]]) + packed[KINDS[kind]] for kind in down],
        "broker": mqtt,
    }


def dump_fact_at(kind: str, data: bytes) -> bytes:
    """A fact with the number of its kind before it."""
    return bytes([list(FACTS).index(kind)]) + data


def _from_vectors(vectors: object) -> Iterator[bytes]:
    """Every payload of the golden vectors, for whichever length fits first."""
    match vectors:
        case dict():
            for key, value in vectors.items():
                if isinstance(value, str) and key in {"payload", "bytes", "hex", "data"}:
                    try:
                        yield bytes([4, 0]) + bytes.fromhex(value)
                    except ValueError:
                        continue
                else:
                    yield from _from_vectors(value)
        case list():
            for value in vectors:
                yield from _from_vectors(value)
        case _:
            return


def write(folder: Path) -> None:
    """Put every seed that is short enough into its target's folder, named by its hash."""
    longest = 4_096
    for target, inputs in seeds().items():
        place = folder / target
        place.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            if len(data) <= longest:
                (place / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
