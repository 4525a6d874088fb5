"""The coordinator's two models: its own in full precision, and the replica, which every device holds bit for bit.

A published version is the quantised sparse way from the replica towards the private weights. What quantisation and
sparsity leave out stays in their difference, so it is sent later: the coordinator's error feedback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.aggregation import Accumulator
from fedmq_coordinator.core.blobs import EMPTY, PIECE_BYTES, Blob, Shelf
from fedmq_coordinator.core.facts import VersionPublished
from fedmq_coordinator.core.packing import pack_vector, unpack_vector
from fedmq_coordinator.core.plain import Arrays
from fedmq_coordinator.core.settings import CompressionSettings
from fedmq_protocol.chunks import NO_HASH, chain_hash
from fedmq_protocol.codecs import (
    CodecSpec,
    Dense,
    apply_delta,
    decode_snapshot,
    decode_snapshot_into,
    encode_delta,
    encode_snapshot_to,
    flushed,
    max_encoded_bytes,
    replica_sha256,
    requantise_inplace,
)
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import Manifest
from fedmq_protocol.schema import TensorSchema
from fedmq_protocol.topics import BlobKind

Vector = NDArray[np.float32]

_SLICE: Final = 1 << 20
"""Elements worked on at once."""


StepsSince = Literal["none", "some", "over"]
"""Whether steps were taken since the last snapshot; of a run that is over, nobody needs to know."""


class PublishedModel:
    """Private weights, replica, and the chain of versions since the last snapshot.

    Names and hashes are changed by facts alone. The arrays may be a version ahead of them: `next_version`, which for a
    large model runs in a thread of its own, moves them on in place, since there is no room for a second model. So the
    fact that it returns must become so, or else the run or the process ends, and the journal says what holds.

    Args:
        schema: the model's.
        settings: how it is published.
        initial: the first weights, as `pack_vector` writes them.
        recipe: the first snapshot, where it says how the first weights are drawn; then `initial` is not looked at.
    """

    def __init__(
        self, schema: TensorSchema, settings: CompressionSettings, initial: Blob, recipe: bytes | None = None
    ) -> None:
        self.schema = schema
        self._settings = settings
        self._down = CodecSpec(settings.down, settings.down_density, code_ms=settings.code_ms)
        self._initial = initial
        self._recipe = recipe
        self._weights: Vector | None = None
        self.replica: Vector = np.zeros(0, dtype=np.float32)
        """float32[size], what every holder of `version` has."""
        self._arrays_at = -1
        """Which version the arrays are."""
        self._step: tuple[Accumulator, float] | None = None
        """What is still to be added to the weights."""
        self.norm = 0.0
        """The length of the weights when they were last written down."""
        self.version = -1
        self.chain_hash = NO_HASH
        self.base = 0
        self.snapshot: Blob = EMPTY
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
    def weights(self) -> Vector:
        """float32[size], what steps are added to; read or made, and added to, when it is asked for."""
        if self._weights is None and self._recipe is not None:
            self._weights = decode_snapshot(self._recipe, self.schema)
        if self._weights is None:
            weights = np.empty(self.schema.size, dtype=np.float32)
            unpack_vector(self._initial, weights)
            self._weights = weights
        if self._step is not None:
            (accumulator, scale), self._step = self._step, None
            accumulator.step(self._weights, scale)
        return self._weights

    def step(self, accumulator: Accumulator, scale: float) -> None:
        """Weights += scale * accumulator, whose owner gives it away: with a large model it is work for a thread."""
        if self._step is not None:
            _ = self.weights
        self._step = accumulator, scale

    @property
    def chain_bytes(self) -> int:
        return sum(blob.ref.size for version, blob in self.deltas.items() if version > self.base)

    @property
    def _longest_chain(self) -> int:
        """Bytes that deltas may have together: those of a snapshot; after a recipe, of what it stands for."""
        if self.base > 0 or self._recipe is None:
            return self.snapshot.ref.size
        schema = self.schema
        weights = max_encoded_bytes(
            schema.num_parameters + schema.num_frozen, CodecSpec(self._settings.snapshot)
        )
        return weights + max_encoded_bytes(schema.num_buffers, CodecSpec("float32"))

    def next_version(self, shelf: Shelf, *, run: str, at: float) -> VersionPublished:
        """Decide the bytes of the next version, and move the arrays to it; names move when the fact is applied.

        Args:
            shelf: where the bytes go.
            run: the run's id.
            at: seconds since the epoch.
        """
        delta: Blob | None = None
        if self.version < 0:
            self.replica = self.weights.copy()
        else:
            delta = _put(shelf, [encode_delta(self.weights, self.replica, self.schema, self._down)])
            apply_delta(self.replica, delta.data, self.schema)
        snapshot: Blob | None = None
        private: Blob | None = None
        if delta is None and self._recipe is not None:
            snapshot = _put(shelf, [self._recipe])
        elif delta is None or self.chain_bytes + delta.ref.size >= self._longest_chain:
            codec = self._settings.snapshot
            with shelf.scratch() as file:
                encode_snapshot_to(self.replica, self.schema, codec, file)
                file.seek(0)
                snapshot = _put(shelf, iter(lambda: file.read(PIECE_BYTES), b""))
            requantise_inplace(self.replica, self.schema, codec)
            _flush(self.weights)  # as they will be read back
            private = pack_vector(self.weights, shelf)
        self._arrays_at = self.version + 1
        if snapshot is not None:
            self.norm = Dense(self.weights).norm()
        content = snapshot if delta is None else delta
        assert content is not None
        return VersionPublished(
            at=at,
            run=run,
            version=self.version + 1,
            delta=delta,
            snapshot=snapshot,
            private=private,
            chain_hash=chain_hash(self.chain_hash, content.ref.sha256),
            replica_hash=None if snapshot is None else replica_sha256(self.replica),
        )

    def apply(self, fact: VersionPublished, *, with_model: bool) -> None:
        """Take over a published version.

        Args:
            fact: the next version.
            with_model: False while replaying facts that a later snapshot makes needless; only names and hashes move.
        """
        if with_model and self._arrays_at < fact.version:
            self._advance(fact)
        if fact.delta is not None:
            self.deltas[fact.version] = fact.delta
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
            self.snapshot = fact.snapshot
            self.deltas = {version: blob for version, blob in self.deltas.items() if version >= fact.version}
            self.chain_hashes = {}
        self.chain_hashes[fact.version] = fact.chain_hash

    def _advance(self, fact: VersionPublished) -> None:
        """Move the arrays to a version out of the journal."""
        if fact.snapshot is not None:
            if len(self.replica) != self.schema.size:
                self.replica = np.empty(self.schema.size, dtype=np.float32)
            decode_snapshot_into(fact.snapshot.data, self.schema, self.replica)
            self.norm = Dense(self.replica).norm()
            if fact.private is not None:
                if self._weights is None:
                    self._weights = np.empty(self.schema.size, dtype=np.float32)
                unpack_vector(fact.private, self._weights)
                self._step, self.norm = None, Dense(self._weights).norm()
        elif fact.delta is not None:
            apply_delta(self.replica, fact.delta.data, self.schema)
        self._arrays_at = fact.version

    def plain(self, arrays: Arrays, *, steps: StepsSince) -> dict[str, object]:
        """What the facts of the chain do not say, as values for msgpack; weights that differ from theirs beside it."""
        weights = arrays.put(self.weights) if steps == "some" else steps
        return {"norm": self.norm, "superseded": self.superseded, "weights": weights}

    def restore(
        self,
        chain: Sequence[VersionPublished],
        plain: Mapping[str, Any],
        arrays: Arrays,
        *,
        with_model: bool,
    ) -> None:
        """Take over, fresh from the constructor, what `plain` wrote, and the facts of the chain since its snapshot.

        Args:
            chain: the fact with the newest snapshot, and those after it.
            plain: what was written.
            arrays: what was written beside it.
            with_model: as in `apply`.

        Raises:
            StoreError: the full-precision weights that it needs are not in the journal any more.
        """
        weights = plain["weights"]
        for number, fact in enumerate(chain):
            drawn = self._recipe is not None and fact.version == 0
            if number == 0 and weights == "none" and fact.private is None and with_model and not drawn:
                raise StoreError("the full-precision weights that it stands on are gone")
            needless = number == 0 and weights != "none"
            self.apply(fact.model_copy(update={"private": None}) if needless else fact, with_model=with_model)
        self.norm = plain["norm"]
        self.superseded = [(version, kind, size) for version, kind, size in plain["superseded"]]
        if with_model and isinstance(weights, int):
            self._weights = arrays.floats(weights, self.schema.size)

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


def rebuild(
    schema: TensorSchema, published: Iterable[VersionPublished], version: int, out: Vector | None = None
) -> Vector:
    """The replica of any published version, float32[schema.size], out of the journal's facts in their order.

    Args:
        schema: the model's.
        published: the facts.
        version: which.
        out: float32[schema.size] to be overwritten, which may be an `np.memmap`; else a new one.

    Raises:
        KeyError: the version is not among them, or no snapshot at or before it is.
        StoreError: the bytes are damaged, or dropped by retention.
    """
    stretch: list[VersionPublished] = []
    for fact in published:
        if fact.version > version:
            break
        if fact.snapshot is not None:
            stretch = []  # what came before leads nowhere else
        if stretch or fact.snapshot is not None:
            stretch.append(fact)
    if not stretch or stretch[-1].version != version:
        raise KeyError(version)
    replica = np.empty(schema.size, dtype=np.float32) if out is None else out
    for fact in stretch:
        if fact.snapshot is not None:
            decode_snapshot_into(fact.snapshot.data, schema, replica)
        elif fact.delta is not None:
            apply_delta(replica, fact.delta.data, schema)
    return replica


def _put(shelf: Shelf, pieces: Iterable[bytes]) -> Blob:
    writing = shelf.begin()
    for piece in pieces:
        writing.write(piece)
    return writing.done()


def _flush(vector: Vector) -> None:
    for start in range(0, len(vector), _SLICE):
        vector[start : start + _SLICE] = flushed(vector[start : start + _SLICE])
