"""Write the dictionary of packed envelopes: `python -m tests.protocol.make_dictionary FILE`.

Only to make another version under another name: what is in use never changes. Examples of messages stand one after
another, those that are sent most last.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgpack

from fedmq_protocol.codecs.registry import names
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.limits import MAX_COUNTER
from fedmq_protocol.messages import (
    Announcement,
    BlobRef,
    Body,
    Cohort,
    Credit,
    Evaluation,
    Hello,
    Lease,
    Manifest,
    Notice,
    Offer,
    Presence,
    Receipt,
    Report,
    Status,
    TaskRef,
    TrainSettings,
    Update,
    UpdateHeader,
    UploadSettings,
)
from fedmq_protocol.packing import NAME
from fedmq_protocol.signing import SigningKey

_KEY = SigningKey(bytes(32))
_HASH = bytes(32)
_TASK = TaskRef(name="digits", version="1", schema_hash="0123456789abcdef" * 4)
_REF = BlobRef(size=6_000, sha256=_HASH)


def examples() -> list[bytes]:
    """Contents of envelopes."""
    score = {"accuracy": 0.9375, "loss": 0.25}
    header = UpdateHeader(
        run="digits-1",
        counter=7,
        lease=8,
        base_version=7,
        schema_hash=_TASK.schema_hash,
        num_examples=140,
        payload=_REF,
        train_s=0.125,
        metrics=score,
        evaluation=Evaluation(version=7, num_examples=36, loss=0.3, metrics={"accuracy": 0.9}),
        traffic=(100_000, 200_000),
        residual_dropped=0.5,
    )
    manifest = Manifest(
        version=8,
        chain_hash=_HASH,
        base=0,
        snapshot=BlobRef(size=100, sha256=_HASH),
        chain_bytes=60_000,
        delta=_REF,
        rebase=True,
        replica_hash=_HASH,
    )
    announcement = Announcement(
        run="digits-1",
        state="running",
        task=_TASK,
        mode="sync",
        round=9,
        manifest=manifest,
        inline_delta=b"",
        cohort=Cohort(devices=["dev-1", "dev-2", "dev-3", "dev-4"]),
        lease=9,
        lease_s=60.0,
        train=TrainSettings(local_epochs=2, batch_size=16, lr=0.02, momentum=0.5, proximal_mu=0.01),
        upload=UploadSettings(
            codec="topk-log4",
            density=0.02,
            first_density=0.1,
            anneal_updates=5,
            residual_cap=5.0,
            coders=["rice/1"],
            update_bytes=4_000,
        ),
        evaluate=True,
        seed=1,
    )
    down: list[Body] = [
        Status(online=True, session=3, public_key=_KEY.public_key),
        Notice(code="unknown-codec", detail="this device does not speak "),
        Credit(run="digits-1", counter=7, have=b"", window=4),
        Lease(run="digits-1", lease=8, version=7, lease_s=60.0),
        announcement,
        Receipt(run="digits-1", counter=7, outcome="rejected", reason="no-lease", residual="restore"),
        Receipt(run="digits-1", counter=7, outcome="accepted", residual="keep"),
    ]
    up: list[Body] = [
        Hello(run="digits-1", version=7),
        Report(code="train-failed", detail="", run="digits-1", lease=8),
        Offer(header=header, chunk_bytes=65_536),
        Presence(online=False, session=1_700_000_000, public_key=_KEY.public_key, traffic=(100_000, 200_000)),
        Presence(
            online=True,
            session=1_700_000_000,
            public_key=_KEY.public_key,
            agent_version="0.1.0",
            tasks=[_TASK],
            codecs=[*names(), NAME],
            num_examples=140,
            traffic=(100_000, 200_000),
        ),
        Update(header=header, data=b""),
    ]
    assert header.counter <= MAX_COUNTER
    return [_content("dev-1", body) for body in up[:-1]] + [
        *(_content("coordinator", body) for body in down),
        _content("dev-1", up[-1]),
    ]


def _content(sender: str, body: Body) -> bytes:
    packet = Sealer(sender=sender, epoch=1, key=_KEY).seal("", body)
    content: bytes = msgpack.unpackb(packet)[0]
    return content


def main() -> None:
    """Write the file that the command line names."""
    Path(sys.argv[1]).write_bytes(b"".join(examples()))


if __name__ == "__main__":
    main()
