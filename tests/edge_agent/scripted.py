"""A coordinator that follows a script: it signs, publishes versions, answers, and counts each update once.

It knows nothing of models: its snapshots and deltas are arbitrary bytes, pinned by the true hashes.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

from fedmq_protocol.chunks import NO_HASH, Assembly, blob_ref, chain_hash, split
from fedmq_protocol.envelope import COORDINATOR, Envelope, Sealer, open_envelope
from fedmq_protocol.messages import (
    Announcement,
    BlobRef,
    Body,
    Cohort,
    Credit,
    Lease,
    Manifest,
    ModelChunk,
    Notice,
    Receipt,
    Status,
    TaskRef,
    TrainSettings,
    UploadSettings,
)
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import BlobKind, Topics

TASK = TaskRef(name="digits", version="1", schema_hash="ab" * 32)
UPLOAD = UploadSettings(codec="topk-log4", density=0.02, first_density=0.02)
EVERYBODY = Cohort(rate=1.0, seed=b"eightbytes")
NOBODY = Cohort(devices=[])


@dataclass(frozen=True)
class Version:
    """A published version."""

    number: int
    chain_hash: bytes
    snapshot: bytes | None = None
    delta: bytes | None = None
    rebase: bool = False


@dataclass
class ScriptedCoordinator:
    """One run's coordinator; `versions[0]` is its first snapshot."""

    federation: str = "home"
    run: str = "r1"
    task: TaskRef = TASK
    epoch: int = 1
    session: int = 1
    chunk_bytes: int = 1_000
    seed: int = 0
    lease_s: float = 60.0
    """How long its leases last, where nothing else is said."""
    key: SigningKey = field(default_factory=lambda: SigningKey(b"c" * 32))
    versions: list[Version] = field(default_factory=list)
    accepted: dict[tuple[str, str, int], bytes] = field(default_factory=dict)
    """(device, run, counter) -> payload; what was counted."""
    uploads: dict[tuple[str, str, int], Assembly] = field(default_factory=dict)
    headers: dict[tuple[str, str, int], BlobRef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.topics = Topics(self.federation)
        self._rng = random.Random(self.seed)
        self.sealer = Sealer(sender=COORDINATOR, epoch=self.epoch, key=self.key)
        if not self.versions:
            self.begin(self.run)

    # ------------------------------------------------------------------------------ versions

    def begin(self, run: str, *, snapshot_bytes: int = 2_500) -> None:
        """A new run, with its first version."""
        snapshot = self._rng.randbytes(snapshot_bytes)
        self.run = run
        self.versions = [
            Version(0, chain_hash(NO_HASH, hashlib.sha256(snapshot).digest()), snapshot=snapshot)
        ]

    def publish(self, *, delta_bytes: int = 300, rebase: bool = False) -> Version:
        """The next version."""
        before, delta = self.versions[-1], self._rng.randbytes(delta_bytes)
        snapshot = self._rng.randbytes(2_500) if rebase else None
        chained = chain_hash(before.chain_hash, hashlib.sha256(delta).digest())
        version = Version(before.number + 1, chained, snapshot, delta, rebase)
        self.versions.append(version)
        return version

    @property
    def manifest(self) -> Manifest:
        newest = self.versions[-1]
        base = max(
            (version for version in self.versions if version.snapshot is not None), key=lambda v: v.number
        )
        assert base.snapshot is not None
        chain = [version.delta or b"" for version in self.versions[base.number + 1 :]]
        return Manifest(
            version=newest.number,
            chain_hash=newest.chain_hash,
            base=base.number,
            snapshot=blob_ref(base.snapshot),
            chain_bytes=sum(map(len, chain)),
            delta=None if newest.delta is None else blob_ref(newest.delta),
            rebase=newest.rebase,
            replica_hash=self.replica_hash(newest.number) if newest.rebase or newest.number == 0 else None,
        )

    def replica_hash(self, version: int) -> bytes:
        """Stands for the hash of the replica."""
        return hashlib.sha256(b"replica" + self.versions[version].chain_hash).digest()

    def blob(self, kind: BlobKind, version: int) -> bytes:
        """A blob's bytes."""
        found = self.versions[version].delta if kind == "delta" else self.versions[version].snapshot
        assert found is not None
        return found

    def chunks(self, kind: BlobKind, version: int) -> list[ModelChunk]:
        """A blob in chunks."""
        data, published = self.blob(kind, version), self.versions[version]
        pieces = split(data, self.chunk_bytes)
        return [
            ModelChunk(
                run=self.run,
                version=version,
                blob=kind,
                index=index,
                count=len(pieces),
                ref=blob_ref(data),
                chain_hash=published.chain_hash,
                rebase=published.rebase,
                replica_hash=self.replica_hash(version) if kind == "snapshot" or published.rebase else None,
                data=piece,
            )
            for index, piece in enumerate(pieces)
        ]

    def retained(self) -> dict[str, bytes]:
        """Every chunk's topic and packet."""
        kinds: list[tuple[BlobKind, Version]] = [("delta", v) for v in self.versions if v.delta is not None]
        kinds += [("snapshot", v) for v in self.versions if v.snapshot is not None]
        return dict(
            self.seal(self.topics.chunk(self.run, version.number, kind, chunk.index), chunk)
            for kind, version in kinds
            for chunk in self.chunks(kind, version.number)
        )

    # ------------------------------------------------------------------------------ messages

    def seal(self, topic: str, body: Body) -> tuple[str, bytes]:
        """A topic and the packet for it."""
        return topic, self.sealer.seal(topic, body)

    def restart(self) -> None:
        """Come back with the next epoch; the journal is kept."""
        self.epoch += 1
        self.session += 1
        self.sealer = Sealer(sender=COORDINATOR, epoch=self.epoch, key=self.key)
        self.uploads.clear()

    def status(self, *, online: bool = True) -> tuple[str, bytes]:
        body = Status(online=online, session=self.session, public_key=self.key.public_key)
        return self.seal(self.topics.coordinator_status, body)

    def announcement(
        self,
        *,
        lease: int = 0,
        cohort: Cohort = NOBODY,
        inline: bool = True,
        lease_s: float | None = None,
        **changes: object,
    ) -> tuple[str, bytes]:
        lasts_s = self.lease_s if lease_s is None else lease_s
        return self.seal(
            self.topics.announcement, self.announced(lease, cohort, lasts_s, inline=inline, **changes)
        )

    def announced(
        self, lease: int, cohort: Cohort, lease_s: float, *, inline: bool = True, **changes: object
    ) -> Announcement:
        fields: dict[str, object] = {
            "run": self.run,
            "state": "running",
            "task": self.task,
            "mode": "sync",
            "round": len(self.versions),
            "manifest": self.manifest,
            "inline_delta": self.versions[-1].delta if inline else None,
            "cohort": cohort,
            "lease": lease,
            "lease_s": lease_s,
            "train": TrainSettings(),
            "upload": UPLOAD,
            "seed": 7,
        }
        return Announcement.model_validate(fields | changes)

    def lease(
        self, device: str, lease: int, *, version: int = 0, lease_s: float | None = None
    ) -> tuple[str, bytes]:
        lasts_s = self.lease_s if lease_s is None else lease_s
        body = Lease(run=self.run, lease=lease, version=version, lease_s=lasts_s)
        return self.seal(self.topics.down(device, "lease"), body)

    def receipt(
        self,
        device: str,
        counter: int,
        *,
        run: str | None = None,
        residual: str = "keep",
        digest: bytes | None = None,
    ) -> tuple[str, bytes]:
        body = Receipt.model_validate(
            {
                "run": run or self.run,
                "counter": counter,
                "outcome": "accepted" if residual == "keep" else "rejected",
                "reason": "" if residual == "keep" else "norm",
                "residual": residual,
                "digest": digest,
            }
        )
        return self.seal(self.topics.down(device, "receipt"), body)

    def notice(self, device: str, *, session: int) -> tuple[str, bytes]:
        body = Notice(code="old-session", detail="too low", session=session)
        return self.seal(self.topics.down(device, "notice"), body)

    # ------------------------------------------------------------------------------ what devices say

    def open(self, topic: str, payload: bytes, public_key: bytes) -> Envelope:
        """Check a device's packet."""
        return open_envelope(topic, payload).verified(public_key)

    def count(self, device: str, run: str, counter: int, payload: bytes) -> bool:
        """Count an update once; whether it was new. The same id with another content is the device's failure."""
        known = self.accepted.setdefault((device, run, counter), payload)
        assert known == payload, "an update id was used twice for different contents"
        return known is payload

    def credit(self, device: str, run: str, counter: int, *, window: int = 2) -> tuple[str, bytes]:
        have = self.uploads[device, run, counter].have()
        return self.seal(
            self.topics.down(device, "credit"), Credit(run=run, counter=counter, have=have, window=window)
        )
