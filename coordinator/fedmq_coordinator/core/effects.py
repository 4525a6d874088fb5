"""What the shell is to do, in order. All `Record`s of a batch are on disk before the first `Send` of it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.blobs import Blob
from fedmq_coordinator.core.events import VersionPrepared
from fedmq_coordinator.core.facts import Fact
from fedmq_protocol.messages import Body, ModelChunk

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class Record:
    """Append to the journal."""

    fact: Fact


@dataclass(frozen=True)
class Send:
    """Seal `body` and publish it with QoS 1.

    Attributes:
        topic: where to.
        body: what.
        retain: for whoever subscribes later, too.
        patient: it goes behind the chunks that were to be sent before it, since it is of no use without them.
        packed: whoever it is for reads the shorter form of envelopes.
    """

    topic: str
    body: Body
    retain: bool = False
    patient: bool = False
    packed: bool = False


@dataclass(frozen=True)
class SendChunk:
    """Seal and publish, with QoS 1, one chunk of a model's blob, which is read only when its turn has come.

    It goes behind every `Send` that is not patient: a model takes as long as it takes, and nobody else waits for it.
    Retained chunks, and their `Clear`s, keep their order.

    Attributes:
        topic: where to.
        head: what the chunks of one blob have in common; its index and data mean nothing.
        blob: where the bytes are.
        index: of the chunk.
        chunk_bytes: size of every chunk but the last.
        retain: for whoever asks the broker; else for a device that has asked the coordinator.
    """

    topic: str
    head: ModelChunk
    blob: Blob
    index: int
    chunk_bytes: int
    retain: bool

    @property
    def body(self) -> ModelChunk:
        """The chunk, read now."""
        data = self.blob.read(self.index * self.chunk_bytes, self.chunk_bytes)
        return self.head.model_copy(update={"index": self.index, "data": data})


@dataclass(frozen=True)
class Clear:
    """Remove a retained message: publish nothing, retained."""

    topic: str


@dataclass(frozen=True)
class Prepare:
    """Have the next version made aside, in a thread of its own, and answer with `VersionPrepared`.

    The arrays of the run's model belong to `work` alone until then. If it raises, this coordinator must end.
    """

    run: str
    work: Callable[[], VersionPrepared]


@dataclass(frozen=True)
class Evaluate:
    """Have the model host evaluate `vector` (float32[schema.size], the published replica) on held-out data."""

    run: str
    version: int
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class Note:
    """Tell the operator: a line for the log, with fields."""

    level: Level
    text: str
    fields: dict[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Halt:
    """End this coordinator: another one with a newer epoch has taken over, or a fact cannot be.

    With `above` it may begin again, with an epoch above that: nobody else has a better right to the federation.
    """

    reason: str
    above: int | None = None


Effect = Record | Send | SendChunk | Clear | Prepare | Evaluate | Note | Halt
