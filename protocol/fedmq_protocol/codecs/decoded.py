"""What a decoded payload is: sparse or dense, both with the same few operations.

The arithmetic here is part of the contract, so that everyone who applies the same bytes holds the same bits: float32
multiply, then float32 add, never fused, elementwise (each parameter is touched once, so no order of summation
matters). Decoded values are finite, and neither subnormal nor -0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32Array: TypeAlias = NDArray[np.float32]
UInt32Array: TypeAlias = NDArray[np.uint32]

SMALLEST_NORMAL = np.float32(2.0**-126)
_SLICE = 1 << 16  # elements worked on at once: temporaries stay in the cache and off the memory bill


@dataclass(frozen=True, eq=False)
class Sparse:
    """Some elements of a vector; the others are zero.

    Attributes:
        n: length of the whole vector.
        indices: uint32[k], strictly increasing, each below `n`.
        values: float32[k], what is added at `indices`.
    """

    n: int
    indices: UInt32Array
    values: Float32Array

    @property
    def nnz(self) -> int:
        """How many elements were sent."""
        return len(self.indices)

    def to_dense(self) -> Float32Array:
        """A new float32[n] that the caller owns."""
        dense = np.zeros(self.n, np.float32)
        dense[self.indices] = self.values
        return dense

    def add_to(self, acc: Float32Array, weight: float = 1.0) -> None:
        """`acc += float32(weight) * self` in place.

        Args:
            acc: float32[n].
            weight: rounded to float32 first.
        """
        _check_target(acc, self.n)
        places = self.indices.astype(np.intp)  # once: reading and writing would each do it
        acc[places] += np.float32(weight) * self.values  # they are distinct: nothing is lost

    def apply_to(self, replica: Float32Array) -> None:
        """`replica += self` in place, then flush what was touched: the one way in which a published model advances.

        Args:
            replica: float32[n], equal bit for bit on everyone who holds this version.
        """
        _check_target(replica, self.n)
        replica[self.indices] = flushed(replica[self.indices] + self.values)

    def norm(self) -> float:
        """Euclidean length, summed in float64. Sums differ between processors in the last bits: journal it."""
        return _norm(self.values)


@dataclass(frozen=True, eq=False)
class Dense:
    """A whole vector.

    Attributes:
        values: float32[n].
    """

    values: Float32Array

    @property
    def n(self) -> int:
        """Length of the vector."""
        return len(self.values)

    @property
    def nnz(self) -> int:
        """How many elements are not zero."""
        return int(np.count_nonzero(self.values))

    def to_dense(self) -> Float32Array:
        """A new float32[n] that the caller owns."""
        return self.values.copy()

    def add_to(self, acc: Float32Array, weight: float = 1.0) -> None:
        """`acc += float32(weight) * self` in place.

        Args:
            acc: float32[n].
            weight: rounded to float32 first.
        """
        _check_target(acc, self.n)
        factor = np.float32(weight)
        for start in range(0, self.n, _SLICE):
            part = slice(start, start + _SLICE)
            acc[part] += factor * self.values[part]

    def apply_to(self, replica: Float32Array) -> None:
        """`replica += self` in place, then flush: the one way in which a published model advances.

        Args:
            replica: float32[n], equal bit for bit on everyone who holds this version.
        """
        _check_target(replica, self.n)
        for start in range(0, self.n, _SLICE):
            part = slice(start, start + _SLICE)
            replica[part] = flushed(replica[part] + self.values[part])

    def norm(self) -> float:
        """Euclidean length, summed in float64. Sums differ between processors in the last bits: journal it."""
        return _norm(self.values)


Decoded: TypeAlias = Sparse | Dense


def flushed(values: Float32Array) -> Float32Array:
    """A copy of `values` with subnormals and -0 replaced by +0, so that no mode of a processor shows."""
    return np.where(np.abs(values) < SMALLEST_NORMAL, np.float32(0.0), values)


def frozen(array: NDArray[np.generic]) -> None:
    """Make a decoded array read-only: it may be shared between a journal, an accumulator and a test."""
    array.setflags(write=False)


def _check_target(acc: Float32Array, n: int) -> None:
    if acc.shape != (n,) or acc.dtype != np.float32:
        raise ValueError(f"expected float32[{n}], got {acc.dtype}{list(acc.shape)}")


def _norm(values: Float32Array) -> float:
    total = 0.0
    for start in range(0, len(values), _SLICE):
        total += float(np.sum(np.square(values[start : start + _SLICE], dtype=np.float64)))
    return float(np.sqrt(total))
