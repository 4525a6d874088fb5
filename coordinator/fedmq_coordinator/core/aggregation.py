"""The sum of what has arrived since the last step: one array of the model's size, however many devices there are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.strategies import Buffer
from fedmq_protocol.codecs import DecodedUpdate
from fedmq_protocol.schema import TensorSchema


class Accumulator:
    """acc = sum over updates of (weight * clip) * update, in float32, elementwise, in the order of arrival.

    Elementwise float32 arithmetic gives the same bits on every machine, so a replay of the journal gives this again.
    """

    def __init__(self, schema: TensorSchema) -> None:
        self._schema = schema
        self._sum: NDArray[np.float32] = np.zeros(schema.size, dtype=np.float32)
        self.num_updates = 0
        self.total_weight = 0.0

    @property
    def buffer(self) -> Buffer:
        return Buffer(self.num_updates, self.total_weight)

    def count(self, *, weight: float) -> None:
        """Count an update whose bytes retention has dropped: a later snapshot holds what it did."""
        self.num_updates += 1
        self.total_weight += weight

    def fold(self, update: DecodedUpdate, *, weight: float, clip: float) -> None:
        """Add one update."""
        factor = weight * clip
        update.parameters.add_to(self._sum[: self._schema.num_parameters], factor)
        tail = self._sum[self._schema.num_parameters + self._schema.num_frozen :]
        tail += np.float32(factor) * update.buffers
        self.count(weight=weight)

    def step(self, weights: NDArray[np.float32], scale: float) -> None:
        """Weights += scale * acc in place, and start anew."""
        self._sum *= np.float32(scale)
        weights += self._sum
        self.clear()

    def clear(self) -> None:
        self._sum.fill(0)
        self.num_updates = 0
        self.total_weight = 0.0
