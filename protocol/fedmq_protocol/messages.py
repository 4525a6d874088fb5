"""The body of every message, as a pydantic model, found by its kind in one table.

Who says what:

    coordinator -> all      status, announcement, turn, chunk
    coordinator -> device   announcement, lease, receipt, credit, chunk, notice
    device -> coordinator   presence, hello, update, offer, upload_chunk, report, get

Bodies are validated strictly (no coercion) and carry no field that is not listed here.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from fedmq_protocol.limits import (
    DEFAULT_CODE_MS,
    MAX_BLOB_BYTES,
    MAX_CHUNKS,
    MAX_CODE_MS,
    MAX_COHORT_LIST,
    MAX_COUNTER,
    MAX_ENVELOPE_BYTES,
    MAX_EXAMPLES,
    MAX_METRICS,
    MAX_TEXT_CHARS,
    RECEIPT_DIGEST_BYTES,
    RING,
)
from fedmq_protocol.topics import ID_PATTERN, BlobKind

Id = Annotated[str, Field(pattern=ID_PATTERN)]
Counter = Annotated[int, Field(ge=0, le=MAX_COUNTER)]
Hash = Annotated[bytes, Field(min_length=32, max_length=32)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]
Metrics = Annotated[dict[Annotated[str, Field(max_length=64)], FiniteFloat], Field(max_length=MAX_METRICS)]
Scalar = bool | int | FiniteFloat | Text
Data = Annotated[bytes, Field(max_length=MAX_ENVELOPE_BYTES)]
Mode = Literal["sync", "fedasync", "fedbuff"]
DIGEST: Final = "digest/1"
"""Among the codecs of a birth certificate: the device reads which update a receipt is for."""


class Body(BaseModel):
    """What an envelope carries."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TaskRef(Body):
    """Names what a run trains: a task that is installed on the devices, never sent."""

    name: Name
    version: Name
    schema_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TrainSettings(Body):
    """How a device trains; names as in Flower's examples. `extra` reaches the task's own `train`."""

    local_epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    lr: Annotated[FiniteFloat, Field(gt=0)] = 0.05
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.9
    proximal_mu: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    extra: Annotated[dict[Annotated[str, Field(max_length=64)], Scalar], Field(max_length=64)] = {}


class UploadSettings(Body):
    """How a device encodes its update."""

    codec: Name
    density: Annotated[FiniteFloat, Field(gt=0, le=1)]
    first_density: Annotated[FiniteFloat, Field(gt=0, le=1)]
    """Density of a device's first update of a run; annealed geometrically to `density`."""
    anneal_updates: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Over how many of a device's updates; 0: `density` from the first."""
    residual_cap: Annotated[FiniteFloat, Field(gt=0)] = 10.0
    """Bound on |residual| / |delta|; what is above it is scaled away and counted."""
    coders: Annotated[list[Name], Field(max_length=64)] = []
    """Coders with their versions that an update may use besides the baseline; a device passes over those it lacks."""
    code_ms: Annotated[int, Field(ge=0, le=MAX_CODE_MS)] = DEFAULT_CODE_MS
    """About how long each side may take to code it better than with Rice codes and zstd; a device may take less."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """Of values in linear levels."""
    per_tensor: bool = False
    """The share is kept of each parameter by itself, at least one element of it."""
    update_bytes: Annotated[int, Field(ge=1, le=MAX_BLOB_BYTES)] | None = None
    """In place of the densities: the update, as a blob, is as long as this allows, and no longer."""


class Cohort(Body):
    """Who takes part: a list, or the sampling rule of `fedmq_protocol.sampling`."""

    devices: Annotated[list[Id], Field(max_length=MAX_COHORT_LIST)] | None = None
    rate: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    seed: Annotated[bytes, Field(min_length=8, max_length=32)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Cohort:
        if (self.devices is None) == (self.rate is None) or (self.rate is None) != (self.seed is None):
            msg = "a cohort is either a list of devices or a rate with a seed"
            raise ValueError(msg)
        return self


class BlobRef(Body):
    """Bytes that travel in chunks: how many, and their SHA-256."""

    size: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    sha256: Hash


class Manifest(Body):
    """Pins one model version bit for bit.

    `chain_hash` is SHA-256(chain_hash of the version before || SHA-256 of this version's delta); at a version that is
    only a snapshot (a run's first) the hash before is 32 zero bytes and the snapshot's SHA-256 stands for the delta's.
    """

    version: Counter
    chain_hash: Hash
    base: Counter
    """The newest version that has a snapshot; base + 1 ... version are deltas."""
    snapshot: BlobRef
    """The snapshot of `base`."""
    chain_bytes: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    """Sizes of the deltas base + 1 ... version, added up."""
    delta: BlobRef | None = None
    """From version - 1 to this version; None at a run's first version."""
    rebase: bool = False
    """After the delta, every holder requantises its replica; then it equals the snapshot of this version."""
    replica_hash: Hash | None = None
    """SHA-256 of the replica's float32 little-endian bytes, at a rebase and at the first version."""


class Announcement(Body):
    """The state of the active run; retained, so that whoever connects learns it at once."""

    run: Id
    state: Literal["running", "finished", "stopped"]
    task: TaskRef
    mode: Mode
    round: Counter
    """Sync: the number of the round. Async: the number of published versions so far."""
    manifest: Manifest
    inline_delta: Data | None = None
    """The bytes of `manifest.delta` when they are small; left out of the retained copy's repeats."""
    cohort: Cohort
    lease: Counter
    """What members of the cohort put into their update; each lease lets a device train once."""
    lease_s: Seconds
    """Remaining seconds in which an update under this lease is waited for."""
    train: TrainSettings
    upload: UploadSettings
    evaluate: bool = False
    """Also evaluate the version on local test data, where the device has some, and report with the update."""
    seed: Counter = 0
    """The run's seed; trainers derive their randomness from (seed, device, lease)."""


class Status(Body):
    """The coordinator is there, or (as its last will) is not."""

    online: bool
    session: Counter
    public_key: Annotated[bytes, Field(min_length=32, max_length=32)]
    """The key that signs this; a device that was told none pins the first that it sees."""
    detail: Text = ""


class Turn(Body):
    """Which devices may send updates now: those on an arc of the ring of `fedmq_protocol.sampling.place`."""

    start: Annotated[int, Field(ge=0, lt=RING)]
    """Where the arc begins."""
    span: Annotated[int, Field(ge=0, le=RING)]
    """How long it is; the whole ring: all of them."""


class ModelChunk(Body):
    """One chunk of a version's delta or snapshot; says all that is needed to fetch and check the rest."""

    run: Id
    version: Counter
    blob: BlobKind
    index: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]
    count: Annotated[int, Field(ge=1, le=MAX_CHUNKS)]
    ref: BlobRef
    chain_hash: Hash
    """Of `version`."""
    rebase: bool = False
    replica_hash: Hash | None = None
    data: Data


class Presence(Body):
    """Birth certificate (`online`), goodbye, or last will of a device."""

    online: bool
    session: Counter
    """Grows with each connection of the device, so that a late will of an older one is recognised."""
    public_key: Annotated[bytes, Field(min_length=32, max_length=32)]
    agent_version: Name = "0"
    tasks: Annotated[list[TaskRef], Field(max_length=16)] = []
    codecs: Annotated[list[Name], Field(max_length=64)] = []
    """Codecs and coders that the device speaks, with their versions; none named: all that are mandatory."""
    num_examples: Counter | None = None
    problem: Text = ""
    """Why the device cannot train now, in words for the operator; empty when it can."""
    traffic: tuple[Counter, Counter] | None = None
    """Bytes sent and received on the MQTT socket since the agent started."""


class Hello(Body):
    """Asks for the announcement: nothing retained came, or the device lost its place."""

    run: Id | None = None
    version: Counter | None = None


class Evaluation(Body):
    """What a device measured of one version on its own test data."""

    version: Counter
    num_examples: Annotated[int, Field(ge=0, le=MAX_EXAMPLES)]
    loss: FiniteFloat
    metrics: Metrics = {}


class UpdateHeader(Body):
    """All of an update but its payload. (device, run, counter) is the update's id."""

    run: Id
    counter: Counter
    lease: Counter
    base_version: Counter
    schema_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    num_examples: Annotated[int, Field(ge=1, le=MAX_EXAMPLES)]
    payload: BlobRef
    train_s: Seconds = 0.0
    metrics: Metrics = {}
    evaluation: Evaluation | None = None
    traffic: tuple[Counter, Counter] | None = None
    """Bytes sent and received on the MQTT socket since the agent started, when this was last sent."""
    residual_dropped: FiniteFloat = 0.0
    """Norm of what the residual's cap scaled away."""


class Update(Body):
    """An update that fits into one packet."""

    header: UpdateHeader
    data: Data


class Offer(Body):
    """Announces an update that needs several packets; answered by a credit."""

    header: UpdateHeader
    chunk_bytes: Annotated[int, Field(ge=1_024, le=MAX_ENVELOPE_BYTES)]


class UploadChunk(Body):
    """One chunk of an offered update, counted from 0 in steps of the offer's `chunk_bytes`."""

    run: Id
    counter: Counter
    index: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]
    data: Data


class Credit(Body):
    """Lets a device send chunks of an offered update."""

    run: Id
    counter: Counter
    have: Annotated[bytes, Field(max_length=MAX_CHUNKS // 8)]
    """Bit i (lowest first) of byte i // 8 is set when chunk i is already there."""
    window: Annotated[int, Field(ge=0, le=1_024)]
    """How many chunks may be under way; 0: wait for another credit."""


class Receipt(Body):
    """Final word on an update."""

    run: Id
    counter: Counter
    outcome: Literal["accepted", "rejected"]
    reason: Annotated[str, Field(max_length=64)] = ""
    detail: Text = ""
    residual: Literal["keep", "restore", "discard"]
    """accepted: keep. rejected: restore (residual += decoded(sent)) or discard (nothing)."""
    digest: (
        Annotated[bytes, Field(min_length=RECEIPT_DIGEST_BYTES, max_length=RECEIPT_DIGEST_BYTES)] | None
    ) = None
    """How the SHA-256 of that update's payload begins: whoever lost its disk may have another of the same number."""


class Lease(Body):
    """Lets one device train once, now, on the newest version that it holds or gets from the announcement."""

    run: Id
    lease: Counter
    version: Counter
    """Train on this version or a newer one."""
    lease_s: Seconds


class Report(Body):
    """What the operator should know of a device: it cannot train, and why. A lease named here is given back."""

    code: Literal[
        "train-failed",
        "task-mismatch",
        "no-data",
        "task-error",
        "model-unreachable",
        "busy",
        "bad-message",
        "other",
    ]
    detail: Text
    run: Id | None = None
    lease: Counter | None = None


class Get(Body):
    """Asks the coordinator for a chunk that the broker did not answer with."""

    run: Id
    version: Counter
    blob: BlobKind
    index: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]


class Notice(Body):
    """Tells a device what is wrong with it, in words for whoever stands before it."""

    code: Annotated[str, Field(max_length=64)]
    detail: Text
    session: Counter | None = None
    """Nothing is taken of the device's lower sessions: it connects again, with a number above this one."""


KINDS: Final[dict[str, type[Body]]] = {
    "status": Status,
    "announcement": Announcement,
    "turn": Turn,
    "chunk": ModelChunk,
    "presence": Presence,
    "hello": Hello,
    "update": Update,
    "offer": Offer,
    "upload_chunk": UploadChunk,
    "credit": Credit,
    "receipt": Receipt,
    "lease": Lease,
    "report": Report,
    "get": Get,
    "notice": Notice,
}
"""Every kind of message. Adding one is one class and one line here."""

KIND_OF: Final[dict[type[Body], str]] = {body: kind for kind, body in KINDS.items()}


def to_plain(body: Body) -> dict[str, Any]:
    """What of `body` goes on the wire: fields that differ from their default, by name.

    A message is small where the default says what is usual, and both sides know it from the protocol's document.
    """
    return body.model_dump(exclude_none=True, exclude_defaults=True)
