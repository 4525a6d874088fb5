"""A body of each kind with everything in it, and one with as little as may be."""

from __future__ import annotations

from typing import Final

from fedmq_protocol.chunks import blob_ref, chain_hash
from fedmq_protocol.messages import (
    Announcement,
    Body,
    Cohort,
    Credit,
    Evaluation,
    Get,
    Hello,
    Lease,
    Manifest,
    ModelChunk,
    Notice,
    Offer,
    Presence,
    Receipt,
    Report,
    Status,
    TaskRef,
    TrainSettings,
    Turn,
    Update,
    UpdateHeader,
    UploadChunk,
    UploadSettings,
)
from fedmq_protocol.topics import Topics
from tests.protocol.vectors.form import COORDINATOR_KEY, DEVICE, DEVICE_KEY, FEDERATION

_TOPICS: Final = Topics(FEDERATION)
_TASK: Final = TaskRef(name="iris", version="1", schema_hash="7" * 64)
_SNAPSHOT: Final = b"the bytes of a snapshot"
_DELTA: Final = b"the bytes of a delta"
_PAYLOAD: Final = b"the bytes of an update"
_FIRST_HASH: Final = chain_hash(bytes(32), blob_ref(_SNAPSHOT).sha256)
_FIRST: Final = Manifest(
    version=0,
    chain_hash=_FIRST_HASH,
    base=0,
    snapshot=blob_ref(_SNAPSHOT),
    chain_bytes=0,
    replica_hash=bytes(range(32)),
)
_NEXT: Final = Manifest(
    version=1,
    chain_hash=chain_hash(_FIRST_HASH, blob_ref(_DELTA).sha256),
    base=0,
    snapshot=blob_ref(_SNAPSHOT),
    chain_bytes=len(_DELTA),
    delta=blob_ref(_DELTA),
)
_LEAST: Final = Announcement(
    run="r-1",
    state="running",
    task=_TASK,
    mode="sync",
    round=1,
    manifest=_FIRST,
    cohort=Cohort(devices=[]),
    lease=1,
    lease_s=600.0,
    train=TrainSettings(),
    upload=UploadSettings(codec="topk-log4", density=0.01, first_density=0.01),
)
_MOST: Final = _LEAST.model_copy(
    update={
        "mode": "fedbuff",
        "round": 2,
        "manifest": _NEXT,
        "inline_delta": _DELTA,
        "cohort": Cohort(rate=0.25, seed=bytes(range(16))),
        "lease": 2**53 - 1,
        "lease_s": 0.5,
        "train": TrainSettings(
            local_epochs=5,
            batch_size=16,
            lr=0.1,
            momentum=0.0,
            proximal_mu=0.001,
            extra={"flag": True, "steps": 3, "rate": 0.5, "name": "caf\u00e9"},
        ),
        "upload": UploadSettings(
            codec="topk-sign", density=0.01, first_density=0.1, anneal_updates=10, residual_cap=4.0
        ),
        "evaluate": True,
        "seed": 42,
    }
)
_HEADER: Final = UpdateHeader(
    run="r-1",
    counter=3,
    lease=9,
    base_version=4,
    schema_hash="7" * 64,
    num_examples=120,
    payload=blob_ref(_PAYLOAD),
)
_FULL_HEADER: Final = _HEADER.model_copy(
    update={
        "train_s": 1.25,
        "metrics": {"loss": 0.5, "accuracy": 0.875},
        "evaluation": Evaluation(version=4, num_examples=30, loss=0.75, metrics={"accuracy": 0.9}),
        "traffic": (123_456, 789),
        "residual_dropped": 0.125,
    }
)
_CHUNK: Final = ModelChunk(
    run="r-1",
    version=1,
    blob="delta",
    index=0,
    count=1,
    ref=blob_ref(_DELTA),
    chain_hash=_NEXT.chain_hash,
    data=_DELTA,
)
_CHUNK_TOPIC: Final = _TOPICS.chunk("r-1", 1, "delta", 0)
_REBASED: Final = _CHUNK.model_copy(update={"rebase": True, "replica_hash": bytes(range(32))})

BODIES: Final[list[tuple[str, str, Body, bool]]] = [
    (
        "status: there",
        _TOPICS.coordinator_status,
        Status(online=True, session=5, public_key=COORDINATOR_KEY.public_key),
        False,
    ),
    (
        "status: goodbye",
        _TOPICS.coordinator_status,
        Status(online=False, session=5, public_key=COORDINATOR_KEY.public_key, detail="stopped"),
        False,
    ),
    ("announcement: the least", _TOPICS.announcement, _LEAST, False),
    ("announcement: the most", _TOPICS.announcement, _MOST, False),
    ("announcement: by hand", _TOPICS.down(DEVICE, "announcement"), _MOST, False),
    ("announcement: over", _TOPICS.announcement, _LEAST.model_copy(update={"state": "finished"}), False),
    ("chunk: retained", _CHUNK_TOPIC, _CHUNK, False),
    ("chunk: of a rebase", _CHUNK_TOPIC, _REBASED, False),
    ("chunk: by hand", _TOPICS.down(DEVICE, "chunk"), _CHUNK, False),
    ("lease", _TOPICS.down(DEVICE, "lease"), Lease(run="r-1", lease=12, version=7, lease_s=60.0), False),
    (
        "receipt: accepted",
        _TOPICS.down(DEVICE, "receipt"),
        Receipt(run="r-1", counter=3, outcome="accepted", residual="keep"),
        False,
    ),
    (
        "receipt: that says for which update",
        _TOPICS.down(DEVICE, "receipt"),
        Receipt(run="r-1", counter=3, outcome="accepted", residual="keep", digest=bytes(range(8))),
        False,
    ),
    (
        "receipt: rejected",
        _TOPICS.down(DEVICE, "receipt"),
        Receipt(
            run="r-1", counter=3, outcome="rejected", reason="no-lease", detail="used up", residual="restore"
        ),
        False,
    ),
    (
        "credit",
        _TOPICS.down(DEVICE, "credit"),
        Credit(run="r-1", counter=3, have=bytes([0b101, 1]), window=4),
        False,
    ),
    (
        "credit: not now",
        _TOPICS.down(DEVICE, "credit"),
        Credit(run="r-1", counter=3, have=b"", window=0),
        False,
    ),
    (
        "notice: of a session",
        _TOPICS.down(DEVICE, "notice"),
        Notice(code="old-session", detail="on from 9", session=9),
        False,
    ),
    ("notice", _TOPICS.down(DEVICE, "notice"), Notice(code="malformed", detail="a lease of 3.0"), False),
    (
        "presence: the last will",
        _TOPICS.presence(DEVICE),
        Presence(online=False, session=8, public_key=DEVICE_KEY.public_key),
        True,
    ),
    (
        "presence: birth certificate",
        _TOPICS.presence(DEVICE),
        Presence(
            online=True,
            session=8,
            public_key=DEVICE_KEY.public_key,
            agent_version="0.1",
            tasks=[_TASK],
            codecs=["topk-log4/1", "int8/1"],
            num_examples=120,
            problem="too warm",
            traffic=(1_000, 2_000),
        ),
        True,
    ),
    ("hello: the least", _TOPICS.up(DEVICE, "hello"), Hello(), True),
    ("hello", _TOPICS.up(DEVICE, "hello"), Hello(run="r-1", version=4), True),
    ("update: the least", _TOPICS.up(DEVICE, "update"), Update(header=_HEADER, data=_PAYLOAD), True),
    ("update: the most", _TOPICS.up(DEVICE, "update"), Update(header=_FULL_HEADER, data=_PAYLOAD), True),
    ("offer", _TOPICS.up(DEVICE, "offer"), Offer(header=_FULL_HEADER, chunk_bytes=1_024), True),
    (
        "upload_chunk",
        _TOPICS.up(DEVICE, "chunk"),
        UploadChunk(run="r-1", counter=3, index=0, data=_PAYLOAD),
        True,
    ),
    (
        "report",
        _TOPICS.up(DEVICE, "report"),
        Report(code="busy", detail="4 updates wait", run="r-1", lease=12),
        True,
    ),
    ("get", _TOPICS.up(DEVICE, "get"), Get(run="r-1", version=1, blob="snapshot", index=0), True),
    ("turn: some", _TOPICS.turn, Turn(start=4_000_000_000, span=1_000_000_000), False),
    ("turn: everybody", _TOPICS.turn, Turn(start=0, span=2**32), False),
]
"""Name, topic, body, and whether the device says it."""
