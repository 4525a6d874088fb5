"""The coordinator's two models: its own in full precision, and the replica, which every device holds bit for bit.

A published version is the quantised sparse way from the replica towards the private weights. What quantisation and
sparsity leave out stays in their difference, so it is sent later: the coordinator's error feedback.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.facts import VersionPublished
from fedmq_coordinator.core.settings import CompressionSettings
from fedmq_protocol.chunks import NO_HASH, blob_ref, chain_hash
from fedmq_protocol.codecs import (
    CodecSpec,
    Dense,
    apply_delta,
    decode,
    decode_snapshot,
    encode,
    encode_delta,
    encode_snapshot,
    replica_sha256,
)
from fedmq_protocol.messages import BlobRef, Manifest
from fedmq_protocol.schema import TensorSchema
from fedmq_protocol.topics import BlobKind

Vector = NDArray[np.float32]


def pack_vector(vector: Vector) -> bytes:
    """A float32 vector as the journal keeps it."""
    return encode(vector, CodecSpec("float32"))[0]


def unpack_vector(data: bytes, size: int) -> Vector:
    """The float32[size] that `pack_vector` was given; the caller may write into it."""
    values = decode(data, size)
    assert isinstance(values, Dense)
    return np.array(values.values, dtype=np.float32)


@dataclass(frozen=True)
class Blob:
    """Published bytes that devices can pull."""

    data: bytes
    ref: BlobRef


class PublishedModel:
    """Private weights, replica, and the chain of versions since the last snapshot. Changed by facts alone."""

    def __init__(self, schema: TensorSchema, settings: CompressionSettings, initial: Vector) -> None:
        self.schema = schema
        self._settings = settings
        self._down = CodecSpec(settings.down, settings.down_density)
        self.weights = initial
        """float32[size], what steps are added to."""
        self.replica: Vector = np.zeros(0, dtype=np.float32)
        """float32[size], what every holder of `version` has."""
        self.version = -1
        self.chain_hash = NO_HASH
        self.base = 0
        self.snapshot = Blob(b"", blob_ref(b""))
        self.replica_hash: bytes | None = None
        """Of `version`, if it is a base."""
        self.base_chain_hash = NO_HASH
        self.base_replica_hash: bytes | None = None
        self.deltas: dict[int, Blob] = {}
        """The chain: versions base + 1 ... version, and the rebasing delta that led to the base."""
        self.chain_hashes: dict[int, bytes] = {}
        self.superseded: list[tuple[int, BlobKind, int]] = []
        """Version, kind and size of what the newest snapshot made needless; the broker retains it for a while."""

    @property
    def chain_bytes(self) -> int:
        return sum(blob.ref.size for version, blob in self.deltas.items() if version > self.base)

    def next_version(self, *, run: str, at: float) -> VersionPublished:
        """Decide the bytes of the next version; nothing changes until the fact is applied."""
        if self.version < 0:
            snapshot, replica = encode_snapshot(self.weights, self.schema, self._settings.snapshot)
            return self._fact(run, at, None, snapshot, replica)
        delta = encode_delta(self.weights, self.replica, self.schema, self._down)
        if self.chain_bytes + len(delta) < self.snapshot.ref.size:
            return self._fact(run, at, delta, None, None)
        replica = self.replica.copy()
        apply_delta(replica, delta, self.schema)
        snapshot, replica = encode_snapshot(replica, self.schema, self._settings.snapshot)
        return self._fact(run, at, delta, snapshot, replica)

    def _fact(
        self, run: str, at: float, delta: bytes | None, snapshot: bytes | None, replica: Vector | None
    ) -> VersionPublished:
        content = delta if delta is not None else snapshot
        assert content is not None
        return VersionPublished(
            at=at,
            run=run,
            version=self.version + 1,
            delta=delta,
            snapshot=snapshot,
            private=None if snapshot is None else pack_vector(self.weights),
            chain_hash=chain_hash(self.chain_hash, hashlib.sha256(content).digest()),
            replica_hash=None if replica is None else replica_sha256(replica),
        )

    def apply(self, fact: VersionPublished, *, with_model: bool) -> None:
        """Take over a published version.

        Args:
            fact: the next version.
            with_model: False while replaying facts that a later snapshot makes needless; only names and hashes move.
        """
        if fact.delta is not None:
            blob = Blob(fact.delta, blob_ref(fact.delta))
            self.deltas[fact.version] = blob
            if with_model and fact.snapshot is None:
                apply_delta(self.replica, fact.delta, self.schema)
        self.version, self.chain_hash, self.replica_hash = fact.version, fact.chain_hash, fact.replica_hash
        if fact.snapshot is not None:
            if fact.version > 0:
                self.superseded = [(self.base, "snapshot", self.snapshot.ref.size)]
                self.superseded += [
                    (v, "delta", b.ref.size) for v, b in self.deltas.items() if v < fact.version
                ]
            self.base, self.base_chain_hash, self.base_replica_hash = (
                fact.version,
                fact.chain_hash,
                fact.replica_hash,
            )
            self.snapshot = Blob(fact.snapshot, blob_ref(fact.snapshot))
            self.deltas = {version: blob for version, blob in self.deltas.items() if version >= fact.version}
            self.chain_hashes = {}
            if with_model:
                self.replica = decode_snapshot(fact.snapshot, self.schema)
                if fact.private is not None:
                    self.weights = unpack_vector(fact.private, self.schema.size)
        self.chain_hashes[fact.version] = fact.chain_hash

    def manifest(self) -> Manifest:
        """What pins the newest version."""
        delta = self.deltas.get(self.version)
        return Manifest(
            version=self.version,
            chain_hash=self.chain_hash,
            base=self.base,
            snapshot=self.snapshot.ref,
            chain_bytes=self.chain_bytes,
            delta=None if delta is None else delta.ref,
            rebase=self.replica_hash is not None and delta is not None,
            replica_hash=self.replica_hash,
        )


def rebuild(schema: TensorSchema, published: Iterable[VersionPublished], version: int) -> Vector:
    """The replica of any published version, float32[schema.size], out of the journal's facts in their order.

    Raises:
        KeyError: the version is not among them, or no snapshot at or before it is.
    """
    replica: Vector | None = None
    for fact in published:
        if fact.version > version:
            break
        if fact.snapshot is not None:
            replica = decode_snapshot(fact.snapshot, schema)
        elif replica is not None and fact.delta is not None:
            apply_delta(replica, fact.delta, schema)
        if fact.version == version and replica is not None:
            return replica
    raise KeyError(version)
