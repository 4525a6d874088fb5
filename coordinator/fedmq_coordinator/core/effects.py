"""What the shell is to do, in order. All `Record`s of a batch are on disk before the first `Send` of it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.facts import Fact
from fedmq_protocol.messages import Body

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class Record:
    """Append to the journal."""

    fact: Fact


@dataclass(frozen=True)
class Send:
    """Seal `body` and publish it with QoS 1."""

    topic: str
    body: Body
    retain: bool = False


@dataclass(frozen=True)
class Clear:
    """Remove a retained message: publish nothing, retained."""

    topic: str


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
    """End this coordinator: another one with a newer epoch has taken over, or a fact cannot be."""

    reason: str


Effect = Record | Send | Clear | Evaluate | Note | Halt
