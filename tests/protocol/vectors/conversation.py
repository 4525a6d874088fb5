"""One device's life of two rounds, packet by packet, as questions that are to be asked in their order.

The run has a model of 144 parameters. Two versions are published after the first, one of them a rebase; one update is
refused and restored, one is delivered over a second connection, to a coordinator that has started anew. In between come
an echo, a packet of an epoch that is over, and a lease that was used.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np

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
    BlobRef,
    Body,
    Cohort,
    Lease,
    Manifest,
    ModelChunk,
    Receipt,
    Status,
    TaskRef,
    TrainSettings,
    UploadSettings,
)
from fedmq_protocol.topics import Topics
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
from tests.protocol.vectors.model_cases import PLAIN_SCHEMA

SCHEMA: Final = PLAIN_SCHEMA
TASK: Final = TaskRef(name="toy", version="1", schema_hash=SCHEMA.hash)
RUN: Final = "toy-1"
EXAMPLES: Final = 120
_TOPICS: Final = Topics(FEDERATION)
_DOWN: Final = CodecSpec("topk-log4", 0.1)
_CHUNK_BYTES: Final = 100


class Script:
    """The coordinator's part, and the list of questions as it grows."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self._sealer = Sealer(sender=COORDINATOR, epoch=5, key=COORDINATOR_KEY)
        weights = np.ascontiguousarray(wave(SCHEMA.size, 3))
        self.snapshot, self.replica = encode_snapshot(weights, SCHEMA, "int8")
        self.base_ref = blob_ref(self.snapshot)
        self.base, self.version, self.lease, self.chained = 0, 0, 0, 0
        self.chain_hash = chain_hash(NO_HASH, self.base_ref.sha256)
        self.delta: bytes | None = None
        self.rebase = False

    # -------------------------------------------------------------------------------- the coordinator

    def publish(self, target: Vector, *, rebase: bool = False) -> None:
        """The next version, on the way to `target`."""
        self.delta = encode_delta(target, self.replica, SCHEMA, _DOWN)
        apply_delta(self.replica, self.delta, SCHEMA)
        self.chain_hash = chain_hash(self.chain_hash, hashlib.sha256(self.delta).digest())
        self.version, self.rebase = self.version + 1, rebase
        self.chained += len(self.delta)
        if rebase:
            self.snapshot = encode_snapshot(self.replica, SCHEMA, "int8")[0]
            self.replica = requantise(self.replica, SCHEMA, "int8")
            self.base, self.base_ref, self.chained = self.version, blob_ref(self.snapshot), 0

    def start_anew(self) -> None:
        """The coordinator's next epoch."""
        self._sealer = Sealer(sender=COORDINATOR, epoch=self._sealer.epoch + 1, key=COORDINATOR_KEY)

    def seal(self, topic: str, body: Body) -> tuple[str, bytes]:
        return topic, self._sealer.seal(topic, body)

    def status(self) -> tuple[str, bytes]:
        epoch, key = self._sealer.epoch, COORDINATOR_KEY.public_key
        return self.seal(_TOPICS.coordinator_status, Status(online=True, session=epoch, public_key=key))

    def announcement(self, *, again: bool = False, over: bool = False) -> tuple[str, bytes]:
        """The state of the run; the device is in the cohort of its next lease, or again of the last one."""
        self.lease += 0 if again or over else 1
        manifest = Manifest(
            version=self.version,
            chain_hash=self.chain_hash,
            base=self.base,
            snapshot=self.base_ref,
            chain_bytes=self.chained,
            delta=None if self.delta is None else blob_ref(self.delta),
            rebase=self.rebase,
            replica_hash=replica_sha256(self.replica) if self.rebase or self.version == 0 else None,
        )
        body = Announcement(
            run=RUN,
            state="finished" if over else "running",
            task=TASK,
            mode="sync",
            round=self.version + 1,
            manifest=manifest,
            inline_delta=self.delta,
            cohort=Cohort(devices=[] if over else [DEVICE]),
            lease=self.lease,
            lease_s=600.0,
            train=TrainSettings(),
            upload=UploadSettings(codec="topk-sign", density=0.1, first_density=0.1),
        )
        return self.seal(_TOPICS.announcement, body)

    def chunks(self) -> list[tuple[str, bytes]]:
        pieces = split(self.snapshot, _CHUNK_BYTES)
        ref = BlobRef(size=len(self.snapshot), sha256=self.base_ref.sha256)
        return [
            self.seal(
                _TOPICS.chunk(RUN, self.version, "snapshot", index),
                ModelChunk(
                    run=RUN,
                    version=self.version,
                    blob="snapshot",
                    index=index,
                    count=len(pieces),
                    ref=ref,
                    chain_hash=self.chain_hash,
                    replica_hash=replica_sha256(self.replica),
                    data=piece,
                ),
            )
            for index, piece in enumerate(pieces)
        ]

    def receipt(self, counter: int, *, accepted: bool) -> tuple[str, bytes]:
        rejected: dict[str, Any] = {"outcome": "rejected", "reason": "no-lease", "residual": "restore"}
        given = {"outcome": "accepted", "residual": "keep"} if accepted else rejected
        return self.seal(_TOPICS.down(DEVICE, "receipt"), Receipt(run=RUN, counter=counter, **given))

    # -------------------------------------------------------------------------------- the questions

    def ask(self, name: str, what: str, given: Plain | None = None, **gives: Any) -> None:
        self.cases.append(Case(name, f"device.{what}", given or {}, gives))

    def hear(self, name: str, message: tuple[str, bytes], *, retained: bool = False, **gives: Any) -> None:
        """The device hears a packet; what it says to it is nothing unless it is stated."""
        topic, packet = message
        given = {"topic": topic, "packet": packet.hex(), "retained": retained}
        nothing: Plain = {"says": [], "subscribes": [], "trains": None}
        self.cases.append(Case(name, "device.hear", given, nothing | gives))

    def trains(self) -> Plain:
        """What the device is to train now."""
        return {"run": RUN, "lease": self.lease, "version": self.version, "replica": floats(self.replica)}

    def trained(self, name: str, change: Vector, counter: int) -> None:
        """The training's outcome: the model that the device holds, plus `change`."""
        given = {"change": floats(change), "num_examples": EXAMPLES}
        self.ask(name, "trained", given, says=[self.update(counter)])

    def update(self, counter: int) -> Plain:
        """What must be in an update, its payload apart, which is the encoder's."""
        header = {
            "run": RUN,
            "counter": counter,
            "lease": counter,
            "base_version": counter - 1,
            "schema_hash": SCHEMA.hash,
            "num_examples": EXAMPLES,
        }
        return {"topic": _TOPICS.up(DEVICE, "update"), "kind": "update", "body": {"header": header}}

    def presence(self, session: int, *, online: bool = True) -> Plain:
        body = {"online": online, "session": session}
        return {"topic": _TOPICS.presence(DEVICE), "kind": "presence", "retain": True, "body": body}

    def connect(self, name: str, session: int, *updates: int) -> None:
        says = [self.presence(session), *[self.update(counter) for counter in updates]]
        filters = _TOPICS.device_filters(DEVICE)
        self.ask(
            name,
            "connect",
            {"session": session},
            will=self.presence(session, online=False),
            subscribes=filters,
            says=says,
        )

    def state(self, name: str, outbox: list[int], residual: Vector | None = None) -> None:
        gives: Plain = {
            "version": self.version,
            "replica_hash": replica_sha256(self.replica).hex(),
            "outbox": outbox,
        }
        if residual is not None:
            gives["residual"] = floats(residual)
        self.cases.append(Case(name, "device.state", {}, gives))


def conversation_cases() -> list[Case]:
    """The whole conversation."""
    script = Script()
    n = SCHEMA.num_parameters
    first_change = np.ascontiguousarray(wave(n + 3)[3:] / np.float32(32)).astype(np.float32)
    second_change = np.ascontiguousarray(wave(n + 9)[9:] / np.float32(64)).astype(np.float32)
    task = TASK.model_dump() | {"entries": entries(SCHEMA), "num_examples": EXAMPLES}
    script.ask(
        "a device with a key, and nothing else",
        "begin",
        {"federation": FEDERATION, "device": DEVICE, "private": DEVICE_PRIVATE.hex(), "task": task},
    )
    script.connect("it connects and introduces itself", 8)
    announcement = script.announcement()
    script.hear("an announcement, before the coordinator's key is known", announcement, retained=True)
    chunks = script.chunks()
    script.hear(
        "the status: the key is pinned, the announcement believed, a snapshot wanted",
        script.status(),
        retained=True,
        subscribes=[chunks[0][0]],
    )
    script.hear(
        "the first chunk tells how many there are",
        chunks[0],
        retained=True,
        subscribes=[topic for topic, _ in chunks[1:]],
    )
    script.hear("the first chunk again", chunks[0], retained=True)
    script.hear(
        "the last chunk: version 0 is there, and trained on", chunks[1], retained=True, trains=script.trains()
    )
    script.state("before anything is trained", [], np.zeros(n, np.float32))
    script.trained("trained: the first update", first_change, 1)
    script.state("the update waits for its receipt", [1])
    refusal = script.receipt(1, accepted=False)
    script.hear("the update is refused, and is to be restored", refusal)
    script.state("all of it is in the residual", [], first_change)
    script.hear("the same receipt again", refusal)
    script.state("and nothing is added twice", [], first_change)
    script.publish((script.replica + first_change).astype(np.float32))
    second = script.announcement()
    script.hear("version 1 comes along with its announcement", second, retained=True, trains=script.trains())
    script.hear("the announcement again", second, retained=True)
    script.hear("the announcement before it", announcement)
    script.trained("trained: the second update", second_change, 2)
    script.ask("the connection breaks", "lose")
    script.connect("another one: presence first, then what has no receipt", 9, 2)
    old = script.receipt(2, accepted=True)
    script.start_anew()
    script.hear(
        "the coordinator has started anew",
        script.status(),
        retained=True,
        says=[script.presence(9), script.update(2)],
    )
    script.hear("a receipt of the epoch that is over", old)
    script.state("is not believed", [2])
    script.ask("the device is killed, and starts with what it kept", "restart")
    script.connect("it connects", 10, 2)
    script.hear("the status again", script.status(), retained=True, may_say=["update"])
    script.hear(
        "the announcement, of the new epoch; version 1 is on disk, its lease was used",
        script.announcement(again=True),
        retained=True,
        may_say=["update"],
    )
    script.hear("a receipt: accepted", script.receipt(2, accepted=True))
    script.state("nothing waits any more", [])
    script.publish((script.replica + second_change).astype(np.float32), rebase=True)
    lease = script.seal(_TOPICS.down(DEVICE, "lease"), Lease(run=RUN, lease=2, version=1, lease_s=60.0))
    script.hear("a lease that it has trained for", lease)
    last = script.announcement()
    script.hear("version 2, a rebase, and a third lease", last, retained=True, trains=script.trains())
    script.state("it holds the rebased bits", [])
    script.hear("the run is over", script.announcement(over=True), retained=True)
    return script.cases
