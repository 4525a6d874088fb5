"""What of a run stands on the broker: the announcement, and the retained chunks of its newest snapshot and chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from fedmq_coordinator.core.blobs import Blob
from fedmq_coordinator.core.effects import SendChunk
from fedmq_coordinator.core.run import Run, RunState
from fedmq_protocol.chunks import chunk_count
from fedmq_protocol.limits import MAX_INLINE_DELTA_BYTES, MAX_PACKET_BYTES, PACKET_OVERHEAD_BYTES
from fedmq_protocol.messages import Announcement, Cohort, ModelChunk
from fedmq_protocol.topics import BlobKind, Topics

_ANNOUNCED: Final[dict[RunState, Literal["running", "finished", "stopped"]]] = {
    "queued": "running",
    "active": "running",
    "finished": "finished",
    "stopped": "stopped",
}


@dataclass
class Publisher:
    """Makes messages of a run's model.

    Attributes:
        topics: the federation's.
        max_packet_bytes: what the broker takes; chunks are cut to it.
    """

    topics: Topics
    max_packet_bytes: int = MAX_PACKET_BYTES

    def announcement(self, run: Run, *, lease_s: float, inline: bool) -> Announcement:
        """The state of the run. `inline`: with the newest delta in it, if it is small."""
        model, settings = run.model, run.settings
        delta = model.deltas.get(model.version)
        small = delta is not None and delta.ref.size <= min(MAX_INLINE_DELTA_BYTES, self._chunk_bytes)
        return Announcement(
            run=run.id,
            state=_ANNOUNCED[run.state],
            task=run.task,
            mode=settings.mode,
            round=run.round,
            manifest=model.manifest(),
            inline_delta=delta.data if delta is not None and inline and small else None,
            cohort=Cohort(devices=[]) if run.over else run.cohort,
            lease=run.cohort_lease,
            lease_s=lease_s,
            train=settings.train,
            upload=settings.compression.upload,
            evaluate=settings.federated_evaluation,
            seed=settings.seed,
        )

    def versions(self, run: Run) -> list[int]:
        """The versions of which something is retained."""
        return sorted({run.model.base, *run.model.deltas})

    def chunk(self, run: Run, version: int, kind: BlobKind, index: int, *, to: str) -> SendChunk | None:
        """One chunk for the device `to`, or None if it is not (or no longer) published."""
        blob = self._blobs(run, version).get(kind)
        if blob is None or index >= self._count(blob):
            return None
        head = self._head(run, version, kind, blob)
        topic = self.topics.down(to, "chunk")
        return SendChunk(topic, head, blob, index, self._chunk_bytes, retain=False)

    def chunks(self, run: Run, version: int) -> Iterator[SendChunk]:
        """Every chunk of a version, to be retained."""
        for kind, blob in self._blobs(run, version).items():
            head = self._head(run, version, kind, blob)
            for index in range(head.count):
                topic = self.topics.chunk(run.id, version, kind, index)
                yield SendChunk(topic, head, blob, index, self._chunk_bytes, retain=True)

    def _head(self, run: Run, version: int, kind: BlobKind, blob: Blob) -> ModelChunk:
        """What all chunks of a blob say."""
        model = run.model
        is_base = version == model.base
        return ModelChunk(
            run=run.id,
            version=version,
            blob=kind,
            index=0,
            count=self._count(blob),
            ref=blob.ref,
            chain_hash=model.chain_hashes[version],
            rebase=is_base and version in model.deltas,
            replica_hash=model.base_replica_hash if is_base else None,
            data=b"",
        )

    def superseded(self, run: Run) -> list[str]:
        """The topics of all chunks that the newest snapshot made needless."""
        return [
            self.topics.chunk(run.id, version, kind, index)
            for version, kind, size in run.model.superseded
            for index in range(chunk_count(size, self._chunk_bytes))
        ]

    def retained(self, run: Run) -> set[str]:
        """The topics of all chunks that should be on the broker now."""
        return {
            self.topics.chunk(run.id, version, kind, index)
            for version in self.versions(run)
            for kind, blob in self._blobs(run, version).items()
            for index in range(self._count(blob))
        }

    @property
    def _chunk_bytes(self) -> int:
        return self.max_packet_bytes - PACKET_OVERHEAD_BYTES

    def _count(self, blob: Blob) -> int:
        return chunk_count(blob.ref.size, self._chunk_bytes)

    def _blobs(self, run: Run, version: int) -> dict[BlobKind, Blob]:
        blobs: dict[BlobKind, Blob] = {}
        if version in run.model.deltas:
            blobs["delta"] = run.model.deltas[version]
        if version == run.model.base:
            blobs["snapshot"] = run.model.snapshot
        return blobs
