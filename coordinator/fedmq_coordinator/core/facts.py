"""The journal's facts: what the core decided. The state is a fold over them, on any machine, bit for bit.

A fact holds what was decided (weights, clip factors, published bytes), not what it could be computed from, since norms
and reductions differ between processors. `at` is seconds since the epoch by the coordinator's clock.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedmq_coordinator.core.blobs import Bulk
from fedmq_coordinator.core.settings import RunSettings
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import Evaluation, TaskRef
from fedmq_protocol.schema import TensorSchema

JOURNAL_VERSION: Final = 5
"""Written into the store; another one is migrated or refused, never guessed at."""


ClosedBy = Literal["all", "goal", "deadline", "timeout", "buffer", "flush", "arrival"]
"""What made a step due."""

EndState = Literal["finished", "stopped"]


class Fact(BaseModel):
    """Something that is so from now on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: float


class EpochBegun(Fact):
    """A coordinator started on this journal.

    `outrun`: on an older copy, or on one of two. Devices may have had leases that this journal knows nothing of, so its
    own go on far above those.
    """

    epoch: int
    outrun: bool = False


class DeviceEnrolled(Fact):
    """The key that a device is known by from now on."""

    device: str
    public_key: bytes


class RunFact(Fact):
    """Something about one run."""

    run: str


class RunCreated(RunFact):
    """A run stands in the queue.

    `initial` is float32[size], little-endian, as the `float32` codec encodes it. Where there is a `recipe`, the bytes
    of a first snapshot that says how weights are drawn, the run starts with what it makes, and `initial` is empty.
    """

    settings: RunSettings
    task: TaskRef
    tensor_schema: TensorSchema
    initial: Bulk
    has_central_data: bool
    recipe: Annotated[bytes | None, Field(repr=False)] = None
    why_no_recipe: str = ""


class RunActivated(RunFact):
    """The run is the active one."""


class VersionPublished(RunFact):
    """A model version exists.

    `delta` leads here from the version before. `snapshot` is there at the first version and at a rebase, together with
    `private`: the coordinator's own full-precision weights at this moment, which bound the replay.
    """

    version: int
    delta: Bulk | None
    snapshot: Bulk | None
    private: Bulk | None
    chain_hash: bytes
    replica_hash: bytes | None


class RoundOpened(RunFact):
    """Devices were given leases with the announcement of `version`.

    `devices` are those that were given one. A cohort announced as a sampling rule has `rate` and `sampling_seed`.
    """

    round: int
    version: int
    lease: int
    devices: list[str]
    goal: int
    lease_expires_at: float
    rate: float | None = None
    sampling_seed: bytes | None = None


class LeaseGranted(RunFact):
    """One device was given a lease by itself."""

    device: str
    lease: int
    version: int
    lease_expires_at: float


class LeaseReturned(RunFact):
    """A lease ended without an update."""

    device: str
    lease: int
    why: str


class UpdateAccepted(RunFact):
    """An update counts. `weight` and `clip` are what it was folded in with: acc += (weight * clip) * decoded."""

    device: str
    counter: int
    lease: int
    base_version: int
    staleness: int
    weight: float
    clip: float
    norm: float
    num_examples: int
    duration_s: float | None
    """From the lease to here; None when the lease is not known any more."""
    train_s: float
    payload: Annotated[bytes | None, Field(repr=False)]
    """None once retention has dropped it: a snapshot behind it bounds the replay."""
    metrics: dict[str, float]
    evaluation: Evaluation | None
    traffic: tuple[int, int] | None
    session: int = 0
    """Of the device, when it sent this: earlier ones are over, for a coordinator that starts anew, too."""
    digest: bytes = b""
    """The first 8 bytes of the payload's SHA-256, by which another update of the same number is told; empty in the
    journals of earlier versions."""


class UpdateRejected(RunFact):
    """An update does not count, and its sender is told so for good."""

    device: str
    counter: int
    lease: int
    reason: str
    detail: str
    residual: Literal["restore", "discard"]
    digest: bytes = b""
    """As in `UpdateAccepted`."""


class StepTaken(RunFact):
    """weights += scale * accumulator; the accumulator starts anew."""

    round: int
    scale: float
    num_updates: int
    closed_by: ClosedBy


class Evaluated(RunFact):
    """The central evaluation of a version."""

    version: int
    loss: float
    num_examples: int
    metrics: dict[str, float]


class TrafficSeen(Fact):
    """What a device's agent counted on its socket when it last said so."""

    device: str
    sent: int
    received: int


class RunEnded(RunFact):
    """The run is over."""

    state: EndState
    reason: str
    best_version: int | None


KINDS: Final[dict[str, type[Fact]]] = {
    fact.__name__: fact
    for fact in (
        EpochBegun,
        DeviceEnrolled,
        RunCreated,
        RunActivated,
        VersionPublished,
        RoundOpened,
        LeaseGranted,
        LeaseReturned,
        UpdateAccepted,
        UpdateRejected,
        StepTaken,
        Evaluated,
        TrafficSeen,
        RunEnded,
    )
}


def dump(fact: Fact) -> tuple[str, bytes]:
    """The kind and the msgpack bytes that the journal keeps."""
    packed: bytes = msgpack.packb(fact.model_dump())
    return type(fact).__name__, packed


def load(kind: str, data: bytes) -> Fact:
    """Read a fact back.

    Raises:
        StoreError: it is of an unknown kind, or damaged.
    """
    model = KINDS.get(kind)
    if model is None:
        msg = f"the journal holds a fact of unknown kind {kind!r}: it was written by a newer fedmq"
        raise StoreError(msg)
    try:
        plain: Any = msgpack.unpackb(data)
        return model.model_validate(plain)
    except (ValueError, msgpack.UnpackException, ValidationError) as error:
        msg = f"the journal is damaged: a {kind} does not read back"
        raise StoreError(msg) from error
