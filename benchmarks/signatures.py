"""What a signature costs a message: time to sign and to verify, beside packing and compressing the same message.

    make bench BENCH=signatures ARGS="--json signatures.json"

The messages are those of a run of the digits MLP (301,066 parameters, 2 % up, 3 % down), made of random changes with
heavy tails. Times are medians of CPU time in one process, taken in turns, so that the ratios are of the same moment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgpack
import numpy as np
import zstandard

from benchmarks.figures import machine
from fedmq_protocol.chunks import blob_ref, chain_hash
from fedmq_protocol.codecs import CodecSpec, encode_delta, encode_snapshot, encode_update
from fedmq_protocol.envelope import COORDINATOR, Sealer, open_envelope
from fedmq_protocol.limits import MAX_CHUNK_BYTES
from fedmq_protocol.messages import (
    Announcement,
    Body,
    Cohort,
    Lease,
    Manifest,
    ModelChunk,
    Presence,
    Receipt,
    TaskRef,
    TrainSettings,
    Update,
    UpdateHeader,
    UploadSettings,
    to_plain,
)
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.signing import SigningKey, verify
from fedmq_protocol.topics import Topics

SCHEMA: Final = TensorSchema(
    entries=(TensorEntry(name="weights", shape=(301_066,), dtype="float32", role="parameter"),)
)
TASK: Final = TaskRef(name="digits", version="1", schema_hash=SCHEMA.hash)
TOPICS: Final = Topics("bench")
KEY: Final = SigningKey(bytes(range(32)))
STEPS: Final = ("pack", "compress", "sign", "verify", "decompress", "unpack", "seal", "open")


def messages() -> Iterator[tuple[str, str, Body]]:
    """Name, topic and body of each message."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0.0, 0.05, SCHEMA.size).astype(np.float32)
    change = (rng.standard_t(3, SCHEMA.size) * 1e-3).astype(np.float32)
    snapshot, replica = encode_snapshot(weights, SCHEMA, "int8")
    delta = bytes(encode_delta(weights + change, replica, SCHEMA, CodecSpec("topk-log4", 0.03)))
    update = bytes(encode_update(change, None, SCHEMA, CodecSpec("topk-log4", 0.02))[0])
    first = chain_hash(bytes(32), blob_ref(snapshot).sha256)
    manifest = Manifest(
        version=1,
        chain_hash=chain_hash(first, blob_ref(delta).sha256),
        base=0,
        snapshot=blob_ref(snapshot),
        chain_bytes=len(delta),
        delta=blob_ref(delta),
    )
    announcement = Announcement(
        run="digits-1",
        state="running",
        task=TASK,
        mode="sync",
        round=2,
        manifest=manifest,
        cohort=Cohort(devices=[f"dev-{i}" for i in range(10)]),
        lease=2,
        lease_s=60.0,
        train=TrainSettings(local_epochs=2),
        upload=UploadSettings(codec="topk-log4", density=0.02, first_density=0.02),
    )
    header = UpdateHeader(
        run="digits-1",
        counter=2,
        lease=2,
        base_version=1,
        schema_hash=SCHEMA.hash,
        num_examples=143,
        payload=blob_ref(update),
        train_s=0.2,
        metrics={"loss": 0.4, "accuracy": 0.9},
    )
    yield "announcement with its manifest", TOPICS.announcement, announcement
    yield (
        "the same with a delta of 3 %",
        TOPICS.announcement,
        announcement.model_copy(update={"inline_delta": delta}),
    )
    yield (
        "receipt",
        TOPICS.down("dev-1", "receipt"),
        Receipt(run="digits-1", counter=2, outcome="accepted", residual="keep"),
    )
    yield "lease", TOPICS.down("dev-1", "lease"), Lease(run="digits-1", lease=3, version=1, lease_s=60.0)
    yield "update of 2 %", TOPICS.up("dev-1", "update"), Update(header=header, data=update)
    yield (
        "birth certificate",
        TOPICS.presence("dev-1"),
        Presence(online=True, session=1, public_key=KEY.public_key, tasks=[TASK], num_examples=143),
    )
    yield (
        "chunk of a snapshot, the largest",
        TOPICS.chunk("digits-1", 0, "snapshot", 0),
        ModelChunk(
            run="digits-1",
            version=0,
            blob="snapshot",
            index=0,
            count=3,
            ref=blob_ref(snapshot),
            chain_hash=first,
            data=bytes(snapshot[:MAX_CHUNK_BYTES]),
        ),
    )


def measured(topic: str, body: Body, times: int) -> dict[str, float]:
    """Bytes, microseconds of each step, and their ratios."""
    sealer = Sealer(sender=COORDINATOR, epoch=5, key=KEY)
    packet = sealer.seal(topic, body)
    content, signature = msgpack.unpackb(packet)
    signed = topic.encode() + b"\0" + content
    plain = to_plain(body)
    packed: bytes = msgpack.packb(plain)
    compressor, decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    compressed = compressor.compress(packed)
    acts: dict[str, Callable[[], object]] = {
        "pack": lambda: msgpack.packb(plain),
        "compress": lambda: compressor.compress(packed),
        "sign": lambda: KEY.sign(signed),
        "verify": lambda: verify(KEY.public_key, signature, signed),
        "decompress": lambda: decompressor.decompress(compressed),
        "unpack": lambda: msgpack.unpackb(packed),
        "seal": lambda: sealer.seal(topic, body),
        "open": lambda: open_envelope(topic, packet).verified(KEY.public_key),
    }
    taken: dict[str, list[int]] = {step: [] for step in STEPS}
    for _ in range(times):
        for step in STEPS:
            began = time.process_time_ns()
            acts[step]()
            taken[step].append(time.process_time_ns() - began)
    figures = {f"{step}_us": statistics.median(values) / 1e3 for step, values in taken.items()}
    return {
        "packet_bytes": len(packet),
        "compressed_body_bytes": len(compressed),
        "envelope_bytes": len(packet) - len(packed),
        **figures,
        "sign_ratio": figures["sign_us"] / (figures["pack_us"] + figures["compress_us"]),
        "verify_ratio": figures["verify_us"] / (figures["unpack_us"] + figures["decompress_us"]),
    }


def main() -> None:
    """Print a line for each message."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=2_000, help="how often each step is taken")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    options = parser.parse_args()
    heads = (
        "bytes",
        "envelope",
        "sign us",
        "verify us",
        "sign / pack+zstd",
        "verify / unpack+zstd",
        "seal us",
        "open us",
    )
    print(f"{'':34}" + "".join(f"{head:>21}" for head in heads))
    results = {}
    for name, topic, body in messages():
        figures = results[name] = measured(topic, body, options.times)
        keys = (
            "packet_bytes",
            "envelope_bytes",
            "sign_us",
            "verify_us",
            "sign_ratio",
            "verify_ratio",
            "seal_us",
            "open_us",
        )
        print(f"{name:34}" + "".join(f"{figures[key]:>21,.{0 if 'bytes' in key else 1}f}" for key in keys))
    if options.json is not None:
        report = {"machine": machine(), "times": options.times, "messages": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
