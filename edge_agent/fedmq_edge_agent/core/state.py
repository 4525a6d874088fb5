"""What survives a restart: the state, which is durable, and the index of model files, which is a cache.

Both are msgpack [version, SHA-256 of body, body], so that a torn or foreign file is recognised before it is believed.

The state is committed once between training and the first sending of an update. Before that commit nothing happened:
the lease may be trained for again, and the files left behind are overwritten. After it the update is never lost: it
is sent until a receipt comes, and the residual that goes with it is the one in the state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedmq_protocol.errors import StoreError
from fedmq_protocol.limits import MAX_CHUNKS, MAX_ENVELOPE_BYTES
from fedmq_protocol.messages import BlobRef, Counter, Hash, UpdateHeader
from fedmq_protocol.topics import BlobKind

STATE_VERSION: Final = 2
"""Of what is written. Version 1 did not know its identity."""
_READABLE: Final = frozenset({1, STATE_VERSION})
INDEX_FILE: Final = "model.idx"
_FILE_NAME: Final = r"^[a-z0-9][a-z0-9._-]{0,127}$"
FileName = Annotated[str, Field(pattern=_FILE_NAME)]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class PendingUpdate(_Kept):
    """An update that has no receipt yet."""

    header: UpdateHeader
    file: FileName


class RunState(_Kept):
    """What a device remembers of a run."""

    counter: Counter = 0
    """Of the last update that was committed; 0: none. The first takes its lease's number, later ones count on.

    A lease trains once and both only grow, so that a device that lost its state takes up above all it ever used.
    """
    lease: Counter = 0
    """The highest lease that was trained for, and committed."""
    updates_done: Counter = 0
    residual_file: FileName | None = None
    """None: the residual is zero."""
    usual_s: float | None = None
    """How long a training takes, smoothed."""
    usual_bytes: Counter | None = None
    """The length of the last update."""
    pending: tuple[PendingUpdate, ...] = ()


class Spent(_Kept):
    """Bytes on the MQTT socket."""

    day: Counter = 0
    """Days since 1970, UTC; 0: the device did not know."""
    today: Counter = 0
    """Sent and received on that day."""
    sent: Counter = 0
    """Since the state was made."""
    received: Counter = 0
    ran_s: Counter = 0
    """How much of a day without a clock was over at the last commit."""


class AgentState(_Kept):
    """All that a device must not forget."""

    identity: Hash | None = None
    """The public key of this device, from its first commit on: it is known by no other one."""
    session: Counter = 0
    """No connection up to now had a higher session number."""
    epoch: Counter = 0
    """The highest epoch of the coordinator that was seen."""
    coordinator: Hash | None = None
    """The public key of the coordinator whose epoch that is; None: of none yet."""
    announced: Counter = 0
    """Sequence of the newest announcement in that epoch, as of the last commit."""
    active: str | None = None
    """The newest run of our task that was announced."""
    runs: dict[str, RunState] = {}
    spent: Spent = Spent()

    def with_run(self, run: str, **changes: Any) -> AgentState:  # noqa: ANN401 - a field each
        """A copy in which fields of `run` are changed; the run is added if it is new."""
        before = self.runs.get(run) or RunState()
        return self.model_copy(update={"runs": {**self.runs, run: before.model_copy(update=changes)}})

    def without_run(self, run: str) -> AgentState:
        """A copy that remembers nothing of `run`."""
        return self.model_copy(
            update={"runs": {name: kept for name, kept in self.runs.items() if name != run}}
        )


class Link(_Kept):
    """One model file: a snapshot, or the delta from the version before."""

    blob: BlobKind
    version: Counter
    ref: BlobRef
    chain_hash: Hash
    """Of `version`."""
    rebase: bool = False
    replica_hash: Hash | None = None

    @property
    def file(self) -> str:
        return blob_file(self.blob, self.version)


class PartHead(_Kept):
    """What its first chunk told of a model file that is being fetched; kept beside its chunks."""

    link: Link
    count: int = Field(ge=1, le=MAX_CHUNKS)
    chunk_bytes: int = Field(ge=1, le=MAX_ENVELOPE_BYTES)
    """Of every chunk but the last."""

    def size(self, index: int) -> int:
        """How many bytes chunk `index` has."""
        return min(self.chunk_bytes, self.link.ref.size - index * self.chunk_bytes)


@dataclass(frozen=True)
class Part:
    """A model file that was being fetched when the agent stopped.

    Attributes:
        head: what is known of it.
        have: the chunks that are there; each was checked against the hash that it came with.
    """

    head: PartHead
    have: frozenset[int]


class ModelIndex(_Kept):
    """The chain on disk: a snapshot and the deltas after it, without a gap; empty when there is none."""

    links: tuple[Link, ...] = ()


def blob_file(blob: BlobKind, version: int) -> str:
    """The name of a model file."""
    return f"base-{version}.bin" if blob == "snapshot" else f"delta-{version}.bin"


def part_file(blob: BlobKind, version: int) -> str:
    """The name of a model file that is still being fetched."""
    return blob_file(blob, version) + ".part"


def have_file(blob: BlobKind, version: int) -> str:
    """The name of the list of chunks that are there of such a file."""
    return part_file(blob, version) + ".have"


def _pack(body: BaseModel) -> bytes:
    packed: bytes = msgpack.packb(body.model_dump(exclude_none=True))
    whole: bytes = msgpack.packb([STATE_VERSION, hashlib.sha256(packed).digest(), packed])
    return whole


def _unpack(data: bytes) -> Any:  # noqa: ANN401 - validated by the caller
    try:
        match msgpack.unpackb(data):
            case [int() as version, bytes() as digest, bytes() as packed]:
                pass
            case _:
                raise StoreError("it is no file of this agent")
        if version not in _READABLE:
            raise StoreError(
                f"it is of version {version}, and this agent reads {STATE_VERSION}: use the same fedmq"
            )
        if hashlib.sha256(packed).digest() != digest:
            raise StoreError("it is damaged")
        return msgpack.unpackb(packed)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise StoreError("it is damaged") from error


def dump_state(state: AgentState) -> bytes:
    """The bytes of the state file."""
    return _pack(state)


def load_state(data: bytes) -> AgentState:
    """Read the state file's bytes.

    Raises:
        StoreError: damaged, foreign, or of another version.
    """
    try:
        return AgentState.model_validate(_unpack(data))
    except ValidationError as error:
        raise StoreError("it is damaged") from error


def dump_index(index: ModelIndex) -> bytes:
    """The bytes of a run's index file."""
    return _pack(index)


def load_index(data: bytes) -> ModelIndex:
    """Read an index file's bytes.

    Raises:
        StoreError: damaged, foreign, of another version, or not one chain.
    """
    try:
        index = ModelIndex.model_validate(_unpack(data))
    except ValidationError as error:
        raise StoreError("it is damaged") from error
    first, rest = index.links[:1], index.links[1:]
    if any(link.blob != "snapshot" for link in first) or any(
        link.blob != "delta" or link.version != first[0].version + place
        for place, link in enumerate(rest, start=1)
    ):
        raise StoreError("it does not hold one chain")
    return index


def dump_head(head: PartHead) -> bytes:
    """The bytes of a part's head."""
    return _pack(head)


def load_head(data: bytes) -> PartHead:
    """Read the bytes of a part's head.

    Raises:
        StoreError: damaged, foreign, of another version, or chunks that do not make up the file.
    """
    try:
        head = PartHead.model_validate(_unpack(data))
    except ValidationError as error:
        raise StoreError("it is damaged") from error
    if -(-head.link.ref.size // head.chunk_bytes) != head.count:
        raise StoreError("its chunks do not make up the file")
    return head
