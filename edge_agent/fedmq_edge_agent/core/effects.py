"""What the shell is to do, in order. An effect is done before the next one begins, except that messages only queue.

Files are named by their run and a plain name; the shell knows the folder.

What the disk does not take is told by one `DiskRefused` for the whole list, before any other event; the rest of the
list is done all the same, but for what `relies_on_commit` when the commit before it was refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedmq_edge_agent.core.state import AgentState, ModelIndex, PartHead
from fedmq_protocol.messages import BlobRef, Body, Offer, TrainSettings, UpdateHeader, UploadSettings
from fedmq_protocol.topics import BlobKind

# ------------------------------------------------------------------------------------------ messages


@dataclass(frozen=True)
class Subscribe:
    """Ask the broker for these exact topics, QoS 1."""

    topics: tuple[str, ...]


@dataclass(frozen=True)
class Unsubscribe:
    """Tell the broker that these are not wanted any more."""

    topics: tuple[str, ...]


@dataclass(frozen=True)
class Send:
    """Seal `body` and publish it with QoS 1; into presence the shell puts the traffic counted so far."""

    topic: str
    body: Body
    retain: bool = False


@dataclass(frozen=True)
class SendUpdate:
    """Publish an update in one packet; its payload is in a file."""

    header: UpdateHeader
    file: str


@dataclass(frozen=True)
class SendUploadChunk:
    """Publish `size` bytes of a file from `offset` on, as chunk `index` of an offered update.

    `payload` is what the whole file should be.
    """

    run: str
    counter: int
    index: int
    file: str
    offset: int
    size: int
    payload: BlobRef


@dataclass(frozen=True)
class Reconnect:
    """End the connection whose session has this number, if that is the present one, and make another."""

    session: int


# --------------------------------------------------------------------------------------------- disk


@dataclass(frozen=True)
class CommitState:
    """Make this the state that a restart begins with: atomic, and durable before the next effect."""

    state: AgentState


@dataclass(frozen=True)
class PinCoordinator:
    """Write down the coordinator's key, durable: no other one will be believed."""

    public_key: bytes


@dataclass(frozen=True)
class SaveModelIndex:
    """Write down which model files there are: atomic, but a cache, so it need not be durable."""

    run: str
    index: ModelIndex


@dataclass(frozen=True)
class StoreBlob:
    """Write a model file whose bytes have been checked."""

    run: str
    blob: BlobKind
    version: int
    data: bytes


@dataclass(frozen=True)
class WriteBlobPart:
    """Write chunk `index` of a model file that is being fetched, and note that it is there."""

    run: str
    head: PartHead
    index: int
    data: bytes


@dataclass(frozen=True)
class FinishBlob:
    """All chunks are there: check size and hash, put the file in place, and tell by `BlobFinished`."""

    run: str
    blob: BlobKind
    version: int
    ref: BlobRef


@dataclass(frozen=True)
class TryDisk:
    """Find out whether the disk takes `room_bytes` again; answered by `DiskMended` or `DiskRefused`."""

    room_bytes: int


@dataclass(frozen=True)
class RemoveFiles:
    """Delete files of a run; those that are not there are no error."""

    run: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class RemoveRun:
    """Delete all that is kept of a run."""

    run: str


# -------------------------------------------------------------------------------------- trainer child


@dataclass(frozen=True)
class OpenTask:
    """Load the task and this device's data."""


@dataclass(frozen=True)
class LoadSnapshot:
    """replica := the snapshot in the file. `ref` is checked first: files rot."""

    run: str
    version: int
    file: str
    ref: BlobRef
    replica_hash: bytes | None


@dataclass(frozen=True)
class ApplyDelta:
    """replica += the delta in the file; at a rebase requantise, and write the snapshot to `snapshot_file`."""

    run: str
    version: int
    file: str
    ref: BlobRef
    rebase: bool
    replica_hash: bytes | None
    snapshot_file: str | None = None


@dataclass(frozen=True)
class Train:
    """Train once on the replica, and encode the update."""

    run: str
    counter: int
    lease: int
    base_version: int
    seed: int
    train: TrainSettings
    upload: UploadSettings
    updates_done: int
    residual_file: str | None
    evaluate: bool


@dataclass(frozen=True)
class Restore:
    """residual += decoded(payload), into `out_file`."""

    run: str
    counter: int
    payload_file: str
    residual_file: str | None
    out_file: str


Request = OpenTask | LoadSnapshot | ApplyDelta | Train | Restore


@dataclass(frozen=True)
class StartTrainer:
    """Start a child; answered by `TrainerStarted` or `TrainerDied` of this generation."""

    generation: int


@dataclass(frozen=True)
class StopTrainer:
    """End the child at once; nothing more is heard of its generation."""

    generation: int


@dataclass(frozen=True)
class Ask:
    """Hand the child its next request; answered by one `TrainerAnswered` or `TrainerDied`."""

    generation: int
    request: Request


# ------------------------------------------------------------------------------------------- people


@dataclass(frozen=True)
class Note:
    """A line for the log, with fields."""

    level: Literal["debug", "info", "warning", "error"]
    text: str
    fields: dict[str, str | int | float] = field(default_factory=dict)


Written = CommitState | PinCoordinator | SaveModelIndex | StoreBlob | WriteBlobPart | FinishBlob | TryDisk
"""What the disk may refuse."""

Effect = (
    Subscribe
    | Unsubscribe
    | Send
    | SendUpdate
    | SendUploadChunk
    | Reconnect
    | CommitState
    | PinCoordinator
    | SaveModelIndex
    | StoreBlob
    | WriteBlobPart
    | FinishBlob
    | TryDisk
    | RemoveFiles
    | RemoveRun
    | StartTrainer
    | StopTrainer
    | Ask
    | Note
)


def relies_on_commit(effect: Effect) -> bool:
    """Whether an effect must not be done when the commit before it in the same list was refused."""
    if isinstance(effect, Send):
        return isinstance(effect.body, Offer)
    return isinstance(effect, SendUpdate | Reconnect | RemoveFiles | RemoveRun | TryDisk)
