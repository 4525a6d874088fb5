"""Long vectors, a slice at a time: a model of 400 MB is coded in a few megabytes beside it.

Whatever is done to all elements is done to `SLICE` of them at once, so that temporaries stay in the cache and off the
memory bill. What is coded need not be an array: whatever can be read by slices and by arrays of indices will do, an
`np.memmap` as well as a difference that is never formed as a whole.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.decoded import Float32Array

SLICE: Final = 1 << 16
"""Elements worked on at once: a multiple of every block that a value code has."""

Key: TypeAlias = slice | NDArray[np.integer[Any]]


class Source(Protocol):
    """float32[n], finite, to be read by slices or arrays of indices; what is read is not written into."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key, /) -> Float32Array: ...


class Difference:
    """`minuend - subtrahend` in float32, formed where it is looked at.

    Args:
        minuend: float32[n].
        subtrahend: float32[n].
    """

    def __init__(self, minuend: Float32Array, subtrahend: Float32Array) -> None:
        if minuend.shape != subtrahend.shape:
            raise ValueError(f"{minuend.shape} less {subtrahend.shape}")
        self._minuend, self._subtrahend = np.asarray(minuend), np.asarray(subtrahend)

    def __len__(self) -> int:
        return len(self._minuend)

    def __getitem__(self, key: Key) -> Float32Array:
        difference: Float32Array = self._minuend[key] - self._subtrahend[key]
        return difference


def parts(n: int) -> list[slice]:
    """0..n cut into slices."""
    if 0 < n <= SLICE:
        return [slice(0, n)]  # as mostly
    return [slice(start, min(start + SLICE, n)) for start in range(0, n, SLICE)]


def check_finite(source: Source) -> None:
    """Refuse infinities and NaN, a slice at a time.

    Raises:
        ValueError: there is one.
    """
    for part in parts(len(source)):
        if not np.isfinite(source[part]).all():
            raise ValueError("the vector is not finite")
