"""Exact top-k selection by magnitude: the same elements on every machine.

The quick way is exact too: a sample of the magnitudes gives a threshold that very likely passes a little more than k
of them; where it does, the k-th largest of those is the k-th largest of all. Where it does not, the whole vector is
partitioned.
"""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.decoded import Float32Array

_SAMPLE_STRIDE = 97  # a prime, so that it does not fall in step with rows and channels
_SAMPLE_MARGIN = 4.0  # standard deviations of the count above the sample's threshold
_PARTITION_BELOW = 32_768  # shorter vectors are partitioned at once


def select(p: Float32Array, k: int) -> NDArray[np.int64]:
    """The indices of the k largest magnitudes, in increasing order.

    Of equal magnitudes at the border the lowest indices are taken, so the result depends on the values alone.

    Args:
        p: float32[n]; infinities count as largest.
        k: how many, 0 <= k <= n.

    Returns:
        int64[k], strictly increasing.

    Raises:
        ValueError: `p` holds a NaN, has another shape or dtype, or k is out of range: misuse by the caller.
    """
    if p.ndim != 1 or p.dtype != np.float32:
        raise ValueError(f"expected a float32 vector, got {p.dtype}{list(p.shape)}")
    n = len(p)
    if not 0 <= k <= n:
        raise ValueError(f"k={k} is outside 0..{n}")
    if n == 0:
        return np.empty(0, np.int64)
    magnitudes = np.abs(p)
    if np.isnan(magnitudes.max()):
        raise ValueError("the vector holds a NaN")
    if k in (0, n):
        return np.arange(k, dtype=np.int64)
    candidates = _likely(magnitudes, k)
    if candidates is None:
        return _largest(magnitudes, k)
    return candidates[_largest(magnitudes[candidates], k)]


def _likely(magnitudes: Float32Array, k: int) -> NDArray[np.int64] | None:
    """Indices of somewhat more than k elements that surely include the k largest, or None if the sample misleads."""
    n = len(magnitudes)
    if n < _PARTITION_BELOW:
        return None
    sample = magnitudes[::_SAMPLE_STRIDE]
    expected = k * len(sample) / n  # of the k largest, so many fall in the sample
    rank = ceil(expected + _SAMPLE_MARGIN * sqrt(expected)) + 1
    if rank >= len(sample) // 2:
        return None
    threshold = np.partition(sample, len(sample) - rank)[len(sample) - rank]
    candidates = np.flatnonzero(magnitudes >= threshold)
    return candidates if k <= len(candidates) <= n // 2 else None


def _largest(magnitudes: Float32Array, k: int) -> NDArray[np.int64]:
    border = np.partition(magnitudes, len(magnitudes) - k)[len(magnitudes) - k]  # the k-th largest
    chosen = magnitudes > border
    equal = np.flatnonzero(magnitudes == border)
    chosen[equal[: k - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)
