"""What the devices of a history train: a small model with a buffer and a frozen tensor, each device at its own pace."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.learner import Learnt
from fedmq_edge_agent.core.effects import Train
from fedmq_protocol.codecs import baseline
from fedmq_protocol.messages import Evaluation, TaskRef
from fedmq_protocol.schema import TensorEntry, TensorSchema

Vector = NDArray[np.float32]

_STEP: Final = 2.0**-10
_BUFFERS, _FROZEN = 3, 2


class PacedTask:
    """Every device pulls the model towards a place of its own, in steps of 2^-10, so that sums of changes are exact.

    Args:
        parameters: how many are trained.
        train_s: how long each device takes.
    """

    def __init__(self, parameters: int, train_s: Mapping[str, float]) -> None:
        self.schema = TensorSchema(
            entries=(
                TensorEntry(name="w", shape=(parameters,), dtype="float32", role="parameter"),
                TensorEntry(name="frozen", shape=(_FROZEN,), dtype="float32", role="frozen"),
                TensorEntry(name="running_mean", shape=(_BUFFERS,), dtype="float32", role="buffer"),
            )
        )
        self.task = TaskRef(name="paced", version="1", schema_hash=self.schema.hash)
        self.codecs: Sequence[str] = baseline()
        self._train_s = dict(train_s)
        self._places = np.arange(self.schema.size, dtype=np.float32)

    def num_examples(self, device: str) -> int:
        """10 to 40, by its name."""
        return 10 + _number(device) % 31

    def train(self, device: str, request: Train, replica: Vector) -> Learnt:
        """Half of the way to the device's own place, and some noise out of seed, device and lease."""
        noise = _number(f"{request.seed}/{device}/{request.lease}")
        target = np.sin(self._places + _number(device) % 97)
        steps = np.rint((target - replica) * (0.5 / _STEP) + np.sin(self._places * (1 + noise % 89)) * 8)
        change = (steps * _STEP).astype(np.float32)
        change[self.schema.num_parameters : self.schema.num_parameters + self.schema.num_frozen] = 0
        evaluation = Evaluation(
            version=request.base_version,
            loss=float(noise % 7),
            num_examples=5,
            metrics={"accuracy": noise % 10 / 10},
        )
        return Learnt(change, self.num_examples(device), {}, evaluation)

    def train_s(self, device: str, request: Train) -> float:  # noqa: ARG002 - the same every time
        """As the plan says."""
        return self._train_s[device]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
