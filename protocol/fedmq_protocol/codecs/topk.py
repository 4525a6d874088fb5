"""Exact top-k selection by magnitude: the same elements on every machine, in memory that follows k and not n.

The quick way is exact too: a sample of the magnitudes gives a threshold that very likely passes a little more than k
of them; where it does, the k-th largest of those is the k-th largest of all. Where it does not, the k-th largest is
found by counting: magnitudes are ordered as their bits are, so one count of the upper halves and one of the lower
halves within the right upper half tell its bits.
"""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.slices import Source, parts

_SAMPLE_STRIDE = 97  # a prime, so that it does not fall in step with rows and channels
_SAMPLE_MARGIN = 4.0  # standard deviations of the count above the sample's threshold
_PARTITION_BELOW = 32_768  # shorter vectors are partitioned at once
_SPARE = 65_536  # more than twice k and this many candidates are too many

_Indices = NDArray[np.int64]
_MAGNITUDE_BITS = np.uint32(0x7FFF_FFFF)
_HALF = np.uint32(16)
_LOW = np.uint32(0xFFFF)


def select(p: Source, k: int) -> _Indices:
    """The indices of the k largest magnitudes, in increasing order.

    Of equal magnitudes at the border the lowest indices are taken, so the result depends on the values alone.

    Args:
        p: float32[n]; infinities count as largest.
        k: how many, 0 <= k <= n.

    Returns:
        int64[k], strictly increasing. About 50 bytes for each of k are taken on the way, and a megabyte.

    Raises:
        ValueError: `p` holds a NaN, has another shape or dtype, or k is out of range: misuse by the caller.
    """
    if isinstance(p, np.ndarray) and (p.ndim != 1 or p.dtype != np.float32):
        raise ValueError(f"expected a float32 vector, got {p.dtype}{list(p.shape)}")
    n = len(p)
    if not 0 <= k <= n:
        raise ValueError(f"k={k} is outside 0..{n}")
    if k in (0, n):
        _passing(p, np.float32(np.inf), n)
        return np.arange(k, dtype=np.int64)
    if n < _PARTITION_BELOW:
        return _largest(_checked(np.abs(p[:])), k)
    threshold = _likely_threshold(p, k)
    if threshold is not None:
        found = _passing(p, threshold, 2 * k + _SPARE)
        if found is not None and len(found[0]) >= k:
            candidates, magnitudes = found
            return candidates[_largest(magnitudes, k)]
    return _by_counting(p, k)


def _likely_threshold(p: Source, k: int) -> np.float32 | None:
    """A magnitude that somewhat more than k elements very likely reach; None if the sample cannot tell."""
    sample = np.abs(p[::_SAMPLE_STRIDE])
    expected = k * len(sample) / len(p)  # of the k largest, so many fall in the sample
    rank = ceil(expected + _SAMPLE_MARGIN * sqrt(expected)) + 1
    if rank >= len(sample) // 2:
        return None
    sample.partition(len(sample) - rank)
    return np.float32(sample[len(sample) - rank])


def _passing(p: Source, threshold: np.float32, most: int) -> tuple[_Indices, Float32Array] | None:
    """Where magnitudes reach the threshold, and those; None if more than `most` do."""
    places: list[_Indices] = []
    reached: list[Float32Array] = []
    for part in parts(len(p)):
        magnitudes = _checked(np.abs(p[part]))
        here = np.flatnonzero(magnitudes >= threshold)
        most -= len(here)
        if most < 0:
            return None
        reached.append(magnitudes[here])
        places.append(here + part.start)
    if not places:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    return np.concatenate(places), np.concatenate(reached)


def _checked(magnitudes: Float32Array) -> Float32Array:
    if np.isnan(magnitudes.max(initial=np.float32(0.0))):
        raise ValueError("the vector is not finite: it holds a NaN")
    return magnitudes


def _largest(magnitudes: Float32Array, k: int) -> _Indices:
    border = np.partition(magnitudes, len(magnitudes) - k)[len(magnitudes) - k]  # the k-th largest
    chosen = magnitudes > border
    equal = np.flatnonzero(magnitudes == border)
    chosen[equal[: k - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)


def _by_counting(p: Source, k: int) -> _Indices:
    upper, above = _bin_of_largest(p, k, None)
    lower, beyond = _bin_of_largest(p, k - above, upper)
    border = np.uint32(upper << 16 | lower)
    equal_wanted = k - above - beyond
    places: list[_Indices] = []
    for part in parts(len(p)):
        bits = _magnitude_bits(p, part)
        chosen = bits > border
        equal = np.flatnonzero(bits == border)[:equal_wanted]
        equal_wanted -= len(equal)
        chosen[equal] = True
        places.append(np.flatnonzero(chosen) + part.start)
    return np.concatenate(places)


def _bin_of_largest(p: Source, k: int, upper: int | None) -> tuple[int, int]:
    """Count halves of the magnitudes' bits: the upper ones, or the lower ones of those with the upper half given.

    Returns:
        The half of the k-th largest counted, and how many lie above it.
    """
    counts = np.zeros(1 << 16, np.int64)
    for part in parts(len(p)):
        bits = _magnitude_bits(p, part)
        halves = bits >> _HALF
        if upper is not None:
            halves = bits[halves == upper] & _LOW
        counts += np.bincount(halves, minlength=1 << 16)
    from_above = np.cumsum(counts[::-1])
    rank = int(np.searchsorted(from_above, k))
    return len(counts) - 1 - rank, int(from_above[rank - 1]) if rank else 0


def _magnitude_bits(p: Source, part: slice) -> NDArray[np.uint32]:
    bits: NDArray[np.uint32] = np.ascontiguousarray(p[part]).view(np.uint32) & _MAGNITUDE_BITS
    return bits
