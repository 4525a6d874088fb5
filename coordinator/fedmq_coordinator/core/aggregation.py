"""The sum of what has arrived since the last step: sparse while that is small, one array of the model's size after.

However many devices there are, it takes at most one and a half times the parameters' bytes, at the moment at which it
becomes dense; as long as it is sparse, at most half of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.plain import Arrays
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

    @property
    def nbytes(self) -> int:
        """What its arrays take."""
        held = sum(indices.nbytes + values.nbytes for indices, values in self._sparse)
        return held + self._buffers.nbytes + (0 if self._sum is None else self._sum.nbytes)

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

    def plain(self, arrays: Arrays) -> dict[str, object]:
        """As values for msgpack, the arrays beside them."""
        indices = [indices for indices, _ in self._sparse]
        values = [values for _, values in self._sparse]
        return {
            "num_updates": self.num_updates,
            "total_weight": self.total_weight,
            "sum": None if self._sum is None else arrays.put(self._sum),
            "buffers": arrays.put(self._buffers),
            "terms": [len(each) for each in indices],
            "indices": arrays.put(np.concatenate(indices)) if indices else None,
            "values": arrays.put(np.concatenate(values)) if values else None,
        }

    @classmethod
    def from_plain(cls, schema: TensorSchema, plain: Mapping[str, Any], arrays: Arrays) -> Accumulator:
        """What `plain` wrote.

        Raises:
            ValueError: an array is not there, or of another length than the model has.
        """
        made = cls(schema)
        made.num_updates, made.total_weight = plain["num_updates"], plain["total_weight"]
        made._buffers = arrays.floats(plain["buffers"], schema.num_buffers)
        if plain["sum"] is not None:
            made._sum = arrays.floats(plain["sum"], schema.num_parameters)
        if plain["terms"]:
            ends = np.cumsum(plain["terms"])
            indices = arrays.indices(plain["indices"], int(ends[-1]), below=schema.num_parameters)
            values = arrays.floats(plain["values"], int(ends[-1]))
            made._sparse = list(zip(np.split(indices, ends[:-1]), np.split(values, ends[:-1]), strict=True))
        return made

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
