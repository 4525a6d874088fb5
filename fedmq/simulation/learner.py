"""What a federation in virtual time learns, and how long that takes: the user's part of a task, without PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmq_edge_agent.core.effects import Train
from fedmq_protocol.messages import Evaluation, TaskRef
from fedmq_protocol.schema import TensorEntry, TensorSchema

Vector = NDArray[np.float32]


class Learnt(NamedTuple):
    """What a training came to.

    Attributes:
        change: float32[schema.size], the model after training minus the one before.
        num_examples: on how many.
        metrics: as the task's `train` returns them.
        evaluation: of the version before training, on the device's own data.
    """

    change: Vector
    num_examples: int
    metrics: dict[str, float]
    evaluation: Evaluation | None


class Learner(Protocol):
    """A task as the devices of a simulation have it installed."""

    @property
    def task(self) -> TaskRef:
        """Its name, version, and the hash of its schema."""
        ...

    @property
    def schema(self) -> TensorSchema:
        """Of its model."""
        ...

    @property
    def codecs(self) -> Sequence[str]:
        """What its devices speak, for the birth certificate."""
        ...

    def num_examples(self, device: str) -> int:
        """How many a device has."""
        ...

    def train(self, device: str, request: Train, replica: Vector) -> Learnt:
        """Train once; `replica` is float32[schema.size], read only. All chance follows from the request."""
        ...

    def train_s(self, device: str, request: Train) -> float:
        """How long that takes, in virtual seconds."""
        ...


_STEP: Final = 2.0**-10


@dataclass(frozen=True)
class ToyLearner:
    """Every device pulls the model towards a target of its own, in steps of 2^-10, so that sums of changes are exact.

    Attributes:
        size: parameters.
        pull: the share of the way that one training goes.
        noise: steps of chance that each parameter gets beside that, at most.
        seconds: that a training takes.
    """

    size: int = 24
    pull: float = 0.5
    noise: int = 8
    seconds: float = 2.0
    schema: TensorSchema = field(init=False)
    task: TaskRef = field(init=False)
    codecs: tuple[str, ...] = ("float32/1", "topk-log4/1", "topk-sign/1", "int8/1")

    def __post_init__(self) -> None:
        entry = TensorEntry(name="w", shape=(self.size,), dtype="float32", role="parameter")
        schema = TensorSchema(entries=(entry,))
        object.__setattr__(self, "schema", schema)
        object.__setattr__(self, "task", TaskRef(name="toy", version="1", schema_hash=schema.hash))

    def num_examples(self, device: str) -> int:
        """10 to 40, by its name."""
        return 10 + _number(device) % 31

    def target(self, device: str) -> Vector:
        """float32[size], where a device would have the model."""
        places = np.arange(self.size, dtype=np.float32)
        return np.sin(places + _number(device) % 97).astype(np.float32)

    def train(self, device: str, request: Train, replica: Vector) -> Learnt:
        """As the class says; the noise is drawn from seed, device and lease."""
        chance = np.random.Generator(np.random.PCG64(_number(f"{request.seed}/{device}/{request.lease}")))
        steps = np.rint((self.target(device) - replica) * (self.pull / _STEP))
        steps += chance.integers(-self.noise, self.noise + 1, self.size)
        return Learnt((steps * _STEP).astype(np.float32), self.num_examples(device), {}, None)

    def train_s(self, device: str, request: Train) -> float:  # noqa: ARG002 - the same for all
        """`seconds`."""
        return self.seconds


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
