"""What happened: everything that the core is told. The shell makes these; the core never asks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.blobs import Blob
from fedmq_coordinator.core.facts import VersionPublished
from fedmq_coordinator.core.settings import RunSettings
from fedmq_protocol.messages import TaskRef
from fedmq_protocol.schema import TensorSchema


@dataclass(frozen=True)
class CoordinatorStarted:
    """The journal has been replayed; `epoch` is above any before.

    `public_key` is this coordinator's, and `who`, which stands in whatever status it gives, tells this process from
    another one with the same key.
    """

    epoch: int
    public_key: bytes = b""
    who: str = ""
    outrun: bool = False
    """The federation has heard of newer epochs than the journal: it is an older copy, or one of two."""


@dataclass(frozen=True)
class BrokerConnected:
    """Subscriptions stand; what was published before may be gone."""

    max_packet_bytes: int | None = None


@dataclass(frozen=True)
class BrokerDisconnected:
    """Nothing can be sent or heard until the next `BrokerConnected`."""

    reason: str


@dataclass(frozen=True)
class PacketArrived:
    """Bytes came in on a topic that the coordinator subscribes to. Hostile until proven otherwise."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True)
class RunRequested:
    """Somebody wants a run.

    Its first weights are `initial`, float32[schema.size] or what `pack_vector` made of it; or, where that is None, what
    `recipe` makes, the bytes of a first snapshot. `why_no_recipe` is for the operator.
    """

    run: str
    settings: RunSettings
    task: TaskRef
    schema: TensorSchema
    initial: NDArray[np.float32] | Blob | None
    has_central_data: bool = False
    recipe: bytes | None = None
    why_no_recipe: str = ""


@dataclass(frozen=True)
class StopRequested:
    """Somebody wants `run` to end now."""

    run: str
    reason: str = "stopped by the operator"


@dataclass(frozen=True)
class EvaluationFinished:
    """The model host evaluated a version on the coordinator's own held-out data."""

    run: str
    version: int
    loss: float
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationFailed:
    """The model host could not."""

    run: str
    version: int
    detail: str


@dataclass(frozen=True)
class VersionPrepared:
    """The work of a `Prepare` is done.

    Attributes:
        fact: the next version; `at` is when its making began.
        lent: float32[schema.size], a copy of its replica for the evaluation, where there may be one.
    """

    fact: VersionPublished
    lent: NDArray[np.float32] | None


@dataclass(frozen=True)
class TimePassed:
    """The moment that `next_deadline` named has come."""


Event = (
    CoordinatorStarted
    | BrokerConnected
    | BrokerDisconnected
    | PacketArrived
    | RunRequested
    | StopRequested
    | EvaluationFinished
    | EvaluationFailed
    | VersionPrepared
    | TimePassed
)
