"""Facts of each shape that the journal has to do with."""

from __future__ import annotations

from fedmq_coordinator.core.facts import RunCreated, StepTaken, UpdateAccepted, VersionPublished
from fedmq_coordinator.core.settings import RunSettings
from fedmq_protocol.messages import Evaluation, TaskRef
from fedmq_protocol.schema import TensorEntry, TensorSchema

SCHEMA = TensorSchema(entries=(TensorEntry(name="w", shape=(2, 3), dtype="float32", role="parameter"),))


def created(run: str = "r", initial: bytes = b"\1" * 24) -> RunCreated:
    return RunCreated(
        at=1.0,
        run=run,
        settings=RunSettings(),
        task=TaskRef(name="t", version="1", schema_hash=SCHEMA.hash),
        tensor_schema=SCHEMA,
        initial=initial,
        has_central_data=True,
    )


def accepted(counter: int, payload: bytes | None, run: str = "r", at: float = 2.0) -> UpdateAccepted:
    return UpdateAccepted(
        at=at,
        run=run,
        device="dev-1",
        counter=counter,
        lease=counter,
        base_version=0,
        staleness=0,
        weight=0.1,
        clip=1.0,
        norm=3.5,
        num_examples=10,
        duration_s=None,
        train_s=0.25,
        payload=payload,
        metrics={"loss": 0.5},
        evaluation=Evaluation(version=0, num_examples=5, loss=0.25, metrics={"accuracy": 0.9}),
        traffic=(100, 200),
    )


def published(version: int, *, private: bytes | None = None, run: str = "r") -> VersionPublished:
    return VersionPublished(
        at=3.0,
        run=run,
        version=version,
        delta=bytes([version]) * 40 if version else None,
        snapshot=b"s" * 50 if private is not None else None,
        private=private,
        chain_hash=bytes(32),
        replica_hash=bytes(32) if private is not None else None,
    )


def step(run: str = "r") -> StepTaken:
    return StepTaken(at=2.5, run=run, round=1, scale=1.0, num_updates=2, closed_by="all")
