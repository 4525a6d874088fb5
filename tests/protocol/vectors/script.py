"""The coordinator's part in the conversations, and the questions as they grow."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from fedmq_protocol.chunks import NO_HASH, blob_ref, chain_hash, split
from fedmq_protocol.codecs import (
    CodecSpec,
    apply_delta,
    encode_delta,
    encode_snapshot,
    replica_sha256,
    requantise,
)
from fedmq_protocol.envelope import COORDINATOR, Sealer
from fedmq_protocol.messages import (
    Announcement,
    Body,
    Cohort,
    Manifest,
    ModelChunk,
    Receipt,
    Status,
    TaskRef,
    TrainSettings,
    UploadSettings,
)
from fedmq_protocol.schema import TensorSchema
from fedmq_protocol.topics import BlobKind, Topics
from tests.protocol.codecs.make_vectors import wave
from tests.protocol.vectors.form import (
    COORDINATOR_KEY,
    DEVICE,
    DEVICE_PRIVATE,
    FEDERATION,
    Case,
    Plain,
    Vector,
    entries,
    floats,
)

RUN: Final = "toy-1"
EXAMPLES: Final = 120
TOPICS: Final = Topics(FEDERATION)
_DOWN: Final = CodecSpec("topk-log4", 0.1)
Message = tuple[str, bytes]


class Script:
    """A coordinator with one run, and the list of questions about a device that hears it.

    Args:
        schema: of the run's model.
        upload: how updates are to be encoded.
        chunk_bytes: of the retained chunks.
    """

    def __init__(self, schema: TensorSchema, upload: UploadSettings, *, chunk_bytes: int) -> None:
        self.schema, self._upload, self._chunk_bytes = schema, upload, chunk_bytes
        self.task = TaskRef(name="toy", version="1", schema_hash=schema.hash)
        self.cases: list[Case] = []
        self._sealer = Sealer(sender=COORDINATOR, epoch=5, key=COORDINATOR_KEY)
        self.snapshot, self.replica = encode_snapshot(wave(schema.size, 3), schema, "int8")
        self.base = self.version = self.lease = 0
        self.chain_hash = chain_hash(NO_HASH, blob_ref(self.snapshot).sha256)
        self.delta: bytes | None = None
        self.rebase = False
        self._chain: list[bytes] = []
        self._retained: list[tuple[str, ModelChunk]] = []
        self._retain("snapshot", self.snapshot)

    # -------------------------------------------------------------------------------- the coordinator

    def publish(self, target: Vector, *, rebase: bool = False) -> None:
        """The next version, on the way to `target`."""
        self.delta = encode_delta(target, self.replica, self.schema, _DOWN)
        apply_delta(self.replica, self.delta, self.schema)
        self.chain_hash = chain_hash(self.chain_hash, hashlib.sha256(self.delta).digest())
        self.version, self.rebase = self.version + 1, rebase
        self._chain.append(self.delta)
        if rebase:
            self.snapshot = encode_snapshot(self.replica, self.schema, "int8")[0]
            self.replica = requantise(self.replica, self.schema, "int8")
            self.base, self._chain = self.version, []
            self._retain("snapshot", self.snapshot)
        self._retain("delta", self.delta)

    def _retain(self, blob: BlobKind, data: bytes) -> None:
        pieces = split(data, self._chunk_bytes)
        for index, piece in enumerate(pieces):
            chunk = ModelChunk(
                run=RUN,
                version=self.version,
                blob=blob,
                index=index,
                count=len(pieces),
                ref=blob_ref(data),
                chain_hash=self.chain_hash,
                rebase=self.rebase,
                replica_hash=self._replica_hash,
                data=piece,
            )
            self._retained.append((TOPICS.chunk(RUN, self.version, blob, index), chunk))

    @property
    def _replica_hash(self) -> bytes | None:
        return replica_sha256(self.replica) if self.rebase or self.version == 0 else None

    def start_anew(self) -> None:
        """The coordinator's next epoch."""
        self._sealer = Sealer(sender=COORDINATOR, epoch=self._sealer.epoch + 1, key=COORDINATOR_KEY)

    def seal(self, topic: str, body: Body) -> Message:
        """A topic and the packet for it."""
        return topic, self._sealer.seal(topic, body)

    def retained(self) -> list[Message]:
        """Every chunk that is on the broker."""
        return [self.seal(topic, chunk) for topic, chunk in self._retained]

    def status(self) -> Message:
        """It is there."""
        epoch, key = self._sealer.epoch, COORDINATOR_KEY.public_key
        return self.seal(TOPICS.coordinator_status, Status(online=True, session=epoch, public_key=key))

    @property
    def manifest(self) -> Manifest:
        """What pins the newest version."""
        return Manifest(
            version=self.version,
            chain_hash=self.chain_hash,
            base=self.base,
            snapshot=blob_ref(self.snapshot),
            chain_bytes=sum(map(len, self._chain)),
            delta=None if self.delta is None else blob_ref(self.delta),
            rebase=self.rebase,
            replica_hash=self._replica_hash,
        )

    def announcement(
        self, *, lease: int | None = None, topic: str = TOPICS.announcement, **changes: object
    ) -> Message:
        """The state of the run; the device is in the cohort of this lease, if there is one."""
        fields: dict[str, object] = {
            "run": RUN,
            "state": "running",
            "task": self.task,
            "mode": "sync",
            "round": self.version + 1,
            "manifest": self.manifest,
            "inline_delta": self.delta,
            "cohort": Cohort(devices=[] if lease is None else [DEVICE]),
            "lease": self.lease if lease is None else lease,
            "lease_s": 600.0,
            "train": TrainSettings(),
            "upload": self._upload,
        }
        self.lease = self.lease if lease is None else lease
        return self.seal(topic, Announcement.model_validate(fields | changes))

    def receipt(self, counter: int, *, accepted: bool, digest: bytes | None = None) -> Message:
        """The final word on an update; `digest` says on which of its number."""
        rejected: dict[str, Any] = {"outcome": "rejected", "reason": "no-lease", "residual": "restore"}
        given = {"outcome": "accepted", "residual": "keep"} if accepted else rejected
        return self.seal(
            TOPICS.down(DEVICE, "receipt"), Receipt(run=RUN, counter=counter, digest=digest, **given)
        )

    # -------------------------------------------------------------------------------- the questions

    def ask(self, name: str, what: str, given: Plain | None = None, gives: Plain | None = None) -> None:
        """A question, and what is to come of it."""
        self.cases.append(Case(name, f"device.{what}", given or {}, gives or {}))

    def begin(self, name: str) -> None:
        """A device with nothing but its key."""
        task = self.task.model_dump() | {"entries": entries(self.schema), "num_examples": EXAMPLES}
        given = {"federation": FEDERATION, "device": DEVICE, "private": DEVICE_PRIVATE.hex(), "task": task}
        self.ask(name, "begin", given)

    def connect(self, name: str, session: int, *says: Plain, max_packet_bytes: int = 131_072) -> None:
        """It connects; presence comes first, and then what it says besides."""
        given = {"session": session, "max_packet_bytes": max_packet_bytes}
        gives = {
            "will": self.presence(session, online=False),
            "subscribes": TOPICS.device_filters(DEVICE),
            "says": [self.presence(session), *says],
        }
        self.ask(name, "connect", given, gives)

    def hear(self, name: str, message: Message, *, retained: bool = False, **gives: Any) -> None:
        """The device hears a packet; what it says to it is nothing unless it is stated."""
        topic, packet = message
        given = {"topic": topic, "packet": packet.hex(), "retained": retained}
        self.ask(name, "hear", given, {"says": [], "subscribes": [], "trains": None, **gives})

    def serve(self, name: str, **gives: Any) -> None:
        """The broker answers with retained chunks, as long as the device subscribes to any."""
        given = {"retained": {topic: packet.hex() for topic, packet in self.retained()}}
        self.ask(name, "serve", given, {"says": [], "trains": None, **gives})

    def trained(self, name: str, change: Vector, says: Plain) -> None:
        """The training's outcome: the model that the device holds, plus `change`."""
        self.ask(name, "trained", {"change": floats(change), "num_examples": EXAMPLES}, {"says": [says]})

    def state(self, name: str, outbox: list[int], residual: Vector | None = None) -> None:
        """What the device holds: the newest version, these updates, and perhaps this residual."""
        gives: Plain = {"version": self.version, "outbox": outbox}
        gives["replica_hash"] = replica_sha256(self.replica).hex()
        if residual is not None:
            gives["residual"] = floats(residual)
        self.ask(name, "state", {}, gives)

    # -------------------------------------------------------------------------------- what is expected

    def trains(self) -> Plain:
        """What the device is to train now."""
        return {"run": RUN, "lease": self.lease, "version": self.version, "replica": floats(self.replica)}

    def presence(self, session: int, *, online: bool = True) -> Plain:
        """Of this session."""
        body = {"online": online, "session": session}
        return {"topic": TOPICS.presence(DEVICE), "kind": "presence", "retain": True, "body": body}

    def header(self, counter: int, lease: int, base_version: int) -> Plain:
        """What must be in an update's header; the payload is the encoder's own."""
        return {
            "run": RUN,
            "counter": counter,
            "lease": lease,
            "base_version": base_version,
            "schema_hash": self.schema.hash,
            "num_examples": EXAMPLES,
        }

    def update(self, counter: int, lease: int, base_version: int) -> Plain:
        """An update in one packet."""
        body = {"header": self.header(counter, lease, base_version)}
        return {"topic": TOPICS.up(DEVICE, "update"), "kind": "update", "body": body}
