"""The sum of what has arrived since the last step: sparse while that is small, one array of the model's size after.

However many devices there are, it takes at most one and a half times the parameters' bytes, at the moment at which it
becomes dense; as long as it is sparse, at most half of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.strategies import Buffer
from fedmq_protocol.codecs import DecodedUpdate, Sparse
from fedmq_protocol.schema import TensorSchema

Vector = NDArray[np.float32]

_SLICE: Final = 1 << 18
"""Elements worked on at once: a step of the sparse sum needs this much room, whatever the model's size."""
_SPARSE_BYTES: Final = 2
"""So many bytes a parameter the sparse sum may take, half of a dense one; a kept element takes eight."""


class Accumulator:
    """acc = sum over updates of (weight * clip) * update, in float32, elementwise, in the order of arrival.

    Elementwise float32 arithmetic gives the same bits on every machine, so a replay of the journal gives this again. It
    gives the same bits sparse and dense, too: what an element is made of, and in which order, is the same.
    """

    def __init__(self, schema: TensorSchema) -> None:
        self._schema = schema
        self._sparse: list[tuple[NDArray[np.uint32], Vector]] = []
        """The parameters' terms, in the order of arrival: indices and factor * values; empty once there is a sum."""
        self._sum: Vector | None = None
        self._buffers: Vector = np.zeros(schema.num_buffers, dtype=np.float32)
        self.num_updates = 0
        self.total_weight = 0.0

    @property
    def buffer(self) -> Buffer:
        return Buffer(self.num_updates, self.total_weight)

    @property
    def is_sparse(self) -> bool:
        """Whether no array of the model's size is held."""
        return self._sum is None

    def count(self, *, weight: float) -> None:
        """Count an update whose bytes retention has dropped: a later snapshot holds what it did."""
        self.num_updates += 1
        self.total_weight += weight

    def fold(self, update: DecodedUpdate, *, weight: float, clip: float) -> None:
        """Add one update."""
        factor = weight * clip
        parameters = update.parameters
        if self._sum is None and isinstance(parameters, Sparse):
            self._sparse.append((parameters.indices, np.float32(factor) * parameters.values))
            held = sum(indices.nbytes + values.nbytes for indices, values in self._sparse)
            if held > _SPARSE_BYTES * self._schema.num_parameters:
                self._sum = self._summed()
                self._sparse.clear()
        else:
            if self._sum is None:
                self._sum = self._summed()
                self._sparse.clear()
            parameters.add_to(self._sum, factor)
        self._buffers += np.float32(factor) * update.buffers
        self.count(weight=weight)

    def step(self, weights: Vector, scale: float) -> None:
        """Weights += scale * acc in place, and start anew."""
        factor = np.float32(scale)
        for start in range(0, self._schema.num_parameters, _SLICE):
            stop = min(start + _SLICE, self._schema.num_parameters)
            part = self._part(start, stop)
            part *= factor
            weights[start:stop] += part
        self._buffers *= factor
        weights[self._schema.num_parameters + self._schema.num_frozen :] += self._buffers
        self.clear()

    def total(self) -> Vector:
        """The sum as it stands, float32[size], frozen tensors zero; the caller owns it."""
        parameters = self._summed() if self._sum is None else self._sum
        frozen = np.zeros(self._schema.num_frozen, dtype=np.float32)
        return np.concatenate([parameters, frozen, self._buffers])

    def clear(self) -> None:
        self._sparse.clear()
        self._sum = None
        self._buffers.fill(0)
        self.num_updates = 0
        self.total_weight = 0.0

    def _summed(self) -> Vector:
        total = np.zeros(self._schema.num_parameters, dtype=np.float32)
        for indices, values in self._sparse:
            total[indices] += values  # indices of one update are distinct
        return total

    def _part(self, start: int, stop: int) -> Vector:
        """Elements start ... stop - 1 of the sum; may be written to, as they are looked at once."""
        if self._sum is not None:
            return self._sum[start:stop]
        part = np.zeros(stop - start, dtype=np.float32)
        edges = np.array([start, stop], dtype=np.uint32)  # of another type, all indices would be converted
        for indices, values in self._sparse:
            first, last = np.searchsorted(indices, edges)
            part[indices[first:last] - np.uint32(start)] += values[first:last]
        return part
