"""What a fleet learns: nothing, at the cost of a model of some size; or a small model, really, on its devices' data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.fleet.distributions import Distribution
from fedmq.simulation.learner import Learnt
from fedmq_edge_agent.core.effects import Train
from fedmq_edge_agent.trainer.seeds import derived_seed
from fedmq_protocol.codecs import CodecSpec, encode_delta, encode_snapshot, encode_update, names
from fedmq_protocol.messages import TaskRef
from fedmq_protocol.schema import TensorEntry, TensorSchema

Vector = NDArray[np.float32]

_STAND_IN: Final = 4_096
"""Elements of the model that stands for a larger one: enough that its snapshots and deltas are in proportion."""
_EXAMPLES: Final = 100


class Pace:
    """How long trainings take: each device has its usual time, and each training a factor.

    Args:
        usual_s: by device.
        jitter: the factor's distribution.
    """

    def __init__(self, usual_s: Mapping[str, float], jitter: Distribution) -> None:
        self._usual_s, self._jitter = usual_s, jitter
        self._is_constant = all(part.family == "constant" for part in jitter.parts) and len(jitter.parts) == 1

    def __call__(self, device: str, request: Train) -> float:
        """Seconds; the same whenever it is asked."""
        if self._is_constant:
            return self._usual_s[device] * self._jitter.mean
        rng = np.random.default_rng(derived_seed(request.seed, device, request.lease))
        return self._usual_s[device] * self._jitter.draw(rng)


def _task(name: str, schema: TensorSchema) -> TaskRef:
    return TaskRef(name=name, version="1", schema_hash=schema.hash)


class CostLearner:
    """Learns nothing: changes are noise, of a model of 4,096 elements that stands for a larger one.

    Args:
        pace: how long trainings take.
    """

    def __init__(self, pace: Pace) -> None:
        entry = TensorEntry(name="w", shape=(_STAND_IN,), dtype="float32", role="parameter")
        self.schema = TensorSchema(entries=(entry,))
        self.task = _task("none", self.schema)
        self.codecs: Sequence[str] = names()
        self.train_s: Callable[[str, Train], float] = pace

    def num_examples(self, device: str) -> int:  # noqa: ARG002 - all alike
        """As many as any."""
        return _EXAMPLES

    def train(self, device: str, request: Train, replica: Vector) -> Learnt:  # noqa: ARG002 - learns nothing
        """Noise."""
        rng = np.random.default_rng(derived_seed(request.seed, device, request.lease))
        return Learnt(rng.standard_normal(_STAND_IN).astype(np.float32), _EXAMPLES, {}, None)


@dataclass(frozen=True)
class Sizes:
    """What the messages of a model would take, and what those of its stand-in do, in bytes."""

    update: int
    delta: int
    snapshot: int


def expected_sizes(num_parameters: int, *, up: CodecSpec, down: CodecSpec, snapshot: str) -> Sizes:
    """Measured on changes as real ones are, more or less: heavy tails, and some rows and columns busier than others.

    Elements are drawn from Student's t with three degrees of freedom, times a factor of the row and one of the column,
    each lognormal with sigma 1. Other models differ: docs/simulation.md compares one with what its devices really sent.
    """
    entry = TensorEntry(name="w", shape=(num_parameters,), dtype="float32", role="parameter")
    schema, rng = TensorSchema(entries=(entry,)), np.random.default_rng(0)
    rows = max(1, isqrt(num_parameters))
    columns = -(-num_parameters // rows)
    busy = np.exp(rng.standard_normal((rows, 1))) * np.exp(rng.standard_normal((1, columns)))
    change = (rng.standard_t(3, (rows, columns)) * busy).ravel()[:num_parameters].astype(np.float32)
    weights = rng.standard_normal(num_parameters).astype(np.float32)
    return Sizes(
        len(encode_update(change, None, schema, up)[0]),
        len(encode_delta(change, np.zeros_like(change), schema, down)),
        len(encode_snapshot(weights, schema, snapshot)[0]),
    )


@dataclass(frozen=True)
class Data:
    """Examples: x float32[n, features], y int64[n]."""

    x: Vector
    y: NDArray[np.int64]


class TableLearner:
    """Softmax regression, or a network with one hidden layer, on the examples of each device.

    Args:
        name: of the task.
        parts: each device's examples.
        held_out: for the central evaluation.
        classes: how many there are.
        hidden: units of the hidden layer; 0: none.
        pace: how long trainings take.
        seed: of the first weights.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, Data],
        held_out: Data,
        *,
        classes: int,
        hidden: int,
        pace: Pace,
        seed: int,
    ) -> None:
        self._parts, self._held_out = parts, held_out
        features = held_out.x.shape[1]
        self._layers = list(pairwise([features, *([hidden] if hidden else []), classes]))
        entries = [
            TensorEntry(name=f"{name}{place}", shape=shape, dtype="float32", role="parameter")
            for place, (inner, outer) in enumerate(self._layers)
            for name, shape in (("weight", (inner, outer)), ("bias", (outer,)))
        ]
        self.schema = TensorSchema(entries=tuple(entries))
        self.task = _task(name, self.schema)
        self.codecs: Sequence[str] = names()
        self.train_s: Callable[[str, Train], float] = pace
        self.initial: Vector = np.zeros(self.schema.size, np.float32)
        rng, start = np.random.default_rng(seed), 0
        for inner, outer in self._layers if hidden else ():
            drawn = rng.standard_normal(inner * outer) * np.sqrt(2 / inner)
            self.initial[start : start + inner * outer] = drawn
            start += (inner + 1) * outer

    def num_examples(self, device: str) -> int:
        """Of the device's part."""
        return len(self._parts[device].y)

    def train(self, device: str, request: Train, replica: Vector) -> Learnt:
        """SGD with momentum, as `request.train` says, in shuffled batches."""
        part, settings = self._parts[device], request.train
        rng = np.random.default_rng(derived_seed(request.seed, device, request.lease))
        weights = replica.copy()
        velocity = np.zeros_like(weights)
        loss = 0.0
        for _ in range(settings.local_epochs):
            order = rng.permutation(len(part.y))
            for start in range(0, len(order), settings.batch_size):
                batch = order[start : start + settings.batch_size]
                loss, gradient = self.gradient(weights, part.x[batch], part.y[batch])
                if settings.proximal_mu:
                    gradient += np.float32(settings.proximal_mu) * (weights - replica)
                velocity *= np.float32(settings.momentum)
                velocity += gradient
                weights -= np.float32(settings.lr) * velocity
        return Learnt(weights - replica, len(part.y), {"loss": loss}, None)

    def evaluate(self, vector: Vector) -> tuple[float, int, dict[str, float]]:
        """Loss, number of examples and accuracy on what was held out; `vector` is float32[size]."""
        logits, _ = self._forward(vector, self._held_out.x)
        y = self._held_out.y
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        loss = float(-log_p[np.arange(len(y)), y].mean())
        return loss, len(y), {"accuracy": float((logits.argmax(axis=1) == y).mean())}

    def gradient(self, weights: Vector, x: Vector, y: NDArray[np.int64]) -> tuple[float, Vector]:
        """The batch's mean cross-entropy, and float32[size]."""
        logits, layers = self._forward(weights, x)
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        rows = np.arange(len(y))
        loss = float(-log_p[rows, y].mean())
        error = np.exp(log_p)
        error[rows, y] -= 1
        error /= len(y)
        parts: list[Vector] = []
        for place in range(len(layers) - 1, -1, -1):
            inputs, matrix = layers[place]
            parts += [error.sum(axis=0), (inputs.T @ error).ravel()]
            if place:
                error = (error @ matrix.T) * (inputs > 0)
        return loss, np.concatenate(parts[::-1]).astype(np.float32)

    def _forward(self, weights: Vector, x: Vector) -> tuple[Vector, list[tuple[Vector, Vector]]]:
        """Logits float32[n, classes], and each layer's inputs and matrix."""
        layers, start, values = [], 0, x
        for inner, outer in self._layers:
            matrix = weights[start : start + inner * outer].reshape(inner, outer)
            bias = weights[start + inner * outer : start + inner * outer + outer]
            start += (inner + 1) * outer
            layers.append((values, matrix))
            values = values @ matrix + bias
            if start < len(weights):
                values = np.maximum(values, 0)
        return values, layers
