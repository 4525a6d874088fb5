"""Which elements of a vector a sparse codec keeps: a share of the whole, or the same share of each tensor in it.

A share of the whole goes where the change is, and costs least for what it carries. The same share of each tensor gives
every layer its turn in every update, at least one element of it, however small its changes are beside the others'.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.slices import Key, Source
from fedmq_protocol.codecs.topk import select


def counts(n: int, tensors: tuple[int, ...], share: Fraction) -> tuple[int, ...]:
    """How many elements are kept of each tensor: max(1, ceil(share m)) of m, none of an empty one.

    Args:
        n: length of the vector.
        tensors: their lengths, which add up to n; none: the vector is taken as a whole.
        share: above 0, at most 1.

    Raises:
        ValueError: the lengths do not add up.
    """
    if tensors and sum(tensors) != n:
        raise ValueError(f"tensors of {sum(tensors)} elements in a vector of {n}")
    return tuple(min(size, max(1, ceil(share * size))) for size in tensors or (n,))


def select_shares(source: Source, tensors: tuple[int, ...], share: Fraction) -> NDArray[np.int64]:
    """The indices of the largest magnitudes, of the whole or of each tensor, in increasing order.

    Args:
        source: float32[n].
        tensors: as `counts`.
        share: as `counts`.

    Returns:
        int64[k], strictly increasing.

    Raises:
        ValueError: as `counts` and `select`.
    """
    wanted = counts(len(source), tensors, share)
    if not tensors:
        return select(source, wanted[0])
    start, found = 0, [np.empty(0, np.int64)]
    for size, k in zip(tensors, wanted, strict=True):
        found.append(select(_Window(source, start, size), k) + start)
        start += size
    return np.concatenate(found)


class _Window:
    """Part of a source."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        self._source, self._start, self._size = source, start, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: Key) -> Float32Array:
        if isinstance(key, slice):
            start, stop, step = key.indices(self._size)
            return self._source[self._start + start : self._start + stop : step]
        return self._source[np.asarray(key) + self._start]
