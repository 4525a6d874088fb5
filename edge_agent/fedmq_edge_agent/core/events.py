"""What happened: everything that the device's core is told. The shell makes these; the core never asks."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmq_edge_agent.core.conditions import Readings
from fedmq_edge_agent.core.effects import Written
from fedmq_edge_agent.disk_faults import DiskFault
from fedmq_protocol.messages import BlobRef, Evaluation, TaskRef
from fedmq_protocol.topics import BlobKind


@dataclass(frozen=True)
class AgentStarted:
    """The state has been read; nothing is connected and no trainer runs."""


@dataclass(frozen=True)
class Connected:
    """The broker took us. Subscriptions of an earlier connection are gone."""

    session: int
    """The number that this connection's last will was signed with."""
    max_packet_bytes: int
    """The largest packet that both sides take."""


@dataclass(frozen=True)
class Disconnected:
    """Nothing can be sent or heard until the next `Connected`."""

    reason: str


@dataclass(frozen=True)
class PacketArrived:
    """Bytes came in. Hostile until proven otherwise."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class BlobFinished:
    """A blob that came in chunks has been checked against its hash, and stands in place if `ok`."""

    run: str
    blob: BlobKind
    version: int
    ok: bool
    damaged: tuple[int, ...] = ()
    """Chunks that the disk did not keep; none, and not `ok`: what was sent is not what was promised."""


@dataclass(frozen=True)
class PayloadLost:
    """The file of an update that was to be sent is gone, cannot be read, or holds something else."""

    run: str
    counter: int
    file: str


@dataclass(frozen=True)
class DiskRefused:
    """The disk did not take what one list of effects, or a `FinishBlob` before, had for it: none of it has happened."""

    effects: tuple[Written, ...]
    fault: DiskFault
    detail: str
    """What is wrong and what to do, in one line."""


@dataclass(frozen=True)
class DiskMended:
    """The disk took what it was tried with."""


@dataclass(frozen=True)
class ConditionsRead:
    """The board was looked at: its power, its heat, its clock, its link."""

    readings: Readings


@dataclass(frozen=True)
class TimePassed:
    """The moment that `next_deadline` named has come."""


# ------------------------------------------------------------------------------ from the trainer child


@dataclass(frozen=True)
class TaskOpened:
    """The trainer loaded the task and this device's data."""

    task: TaskRef
    codecs: tuple[str, ...]
    num_examples: int


@dataclass(frozen=True)
class ModelLoaded:
    """The trainer's replica is now `version` of `run`.

    `snapshot` is there when it also wrote this version as a snapshot file, at a rebase.
    """

    run: str
    version: int
    snapshot: BlobRef | None = None


@dataclass(frozen=True)
class TrainingFinished:
    """The trainer trained once; its files are on disk, durable, but nothing refers to them yet."""

    run: str
    payload_file: str
    payload: BlobRef
    residual_file: str
    num_examples: int
    train_s: float
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    residual_dropped: float = 0.0


@dataclass(frozen=True)
class ResidualRestored:
    """What a refused update carried is back in the residual, in a new file."""

    run: str
    counter: int
    residual_file: str


@dataclass(frozen=True)
class TrainerRefused:
    """The trainer is well, but cannot do what it was asked."""

    code: str
    """task-error, no-data, bad-model, bad-residual, train-failed, one of the disk, or a word of its own."""
    detail: str
    room_bytes: int = 0
    """Where the disk is the reason: about how much has to fit on it."""


Answer = TaskOpened | ModelLoaded | TrainingFinished | ResidualRestored | TrainerRefused


@dataclass(frozen=True)
class TrainerStarted:
    """The child process is there and listens."""

    generation: int


@dataclass(frozen=True)
class TrainerAnswered:
    """The child answered the one request that was open."""

    generation: int
    answer: Answer


@dataclass(frozen=True)
class TrainerDied:
    """The child could not be started, crashed, or was killed."""

    generation: int
    detail: str


Event = (
    AgentStarted
    | Connected
    | Disconnected
    | PacketArrived
    | BlobFinished
    | PayloadLost
    | DiskRefused
    | DiskMended
    | ConditionsRead
    | TimePassed
    | TrainerStarted
    | TrainerAnswered
    | TrainerDied
)
