"""Whether a model's first weights can be told as a recipe: drawn anew from a seed by everyone, they need not travel.

A model is drawn a few times, from different seeds. A tensor that is the same number throughout is a constant. One that
does not depend on the seed was loaded, not drawn, and must travel. What was drawn is held against an even and a normal
distribution around zero by the greatest distance of the cumulative shares (A. N. Kolmogorov 1933), and the lengths of
its rows and columns against those of independent draws, so that orthogonal weights, or tensors put together from parts
of different scale, are not mistaken for what they only resemble element by element.

A fit need not be perfect: nothing depends on the last percent of a distribution that weights begin with. What is no fit
travels in a snapshot, which is always right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.seeded import Segment

Vector = NDArray[np.float32]
Doubles = NDArray[np.float64]

DRAWS: Final = 2
"""How often a model is drawn at least: loaded weights are those that do not change."""
MORE_DRAWS: Final = 16
"""How often if it is small, since little can be told from a few numbers."""
SMALL: Final = 1 << 20
"""Elements of a model that is drawn `MORE_DRAWS` times."""

_SAMPLE: Final = 1 << 15  # elements of a tensor that are looked at one by one
_BY_CHANCE: Final = 1.95  # Kolmogorov's distance times sqrt(n), passed once in a thousand times
_CLOSE_ENOUGH: Final = 0.02  # distance that does not matter
_DEVIATIONS: Final = 6.0
_FEW_ROWS: Final = 8
_ZEROS: Final = 2**-20  # share of zeros that even a fine grid of numbers brings
_EQUAL: Final = 1e-2  # share of elements that two draws may have in common


class MisfitError(Exception):
    """A tensor is of no kind that a recipe knows; `str` says why."""


@dataclass(frozen=True)
class Look:
    """What of one drawn tensor is remembered, so that one model at a time is in memory.

    Attributes:
        size: how many elements.
        sample: float64[min(size, 32768)], evenly spread over the tensor.
        smallest: the smallest element.
        largest: the largest element.
        zeros: how many are zero.
        lengths: for rows and for columns the sums of squares, where there are enough; else nothing.
    """

    size: int
    sample: Doubles
    smallest: float
    largest: float
    zeros: int
    lengths: tuple[Doubles, ...]


def look(values: Vector, shape: Sequence[int]) -> Look:
    """Look at a tensor.

    Args:
        values: float32[m], m at least 1.
        shape: of the tensor, whose product is m.
    """
    stride = -(-len(values) // _SAMPLE)
    lengths: tuple[Doubles, ...] = ()
    if len(shape) > 1:
        matrix = values.reshape(shape[0], -1)  # [out, in * kernel]
        both = (np.einsum("rc,rc->r", matrix, matrix), np.einsum("rc,rc->c", matrix, matrix))
        lengths = tuple(sums.astype(np.float64) for sums in both)
    return Look(
        size=len(values),
        sample=values[::stride].astype(np.float64),
        smallest=float(values.min()),
        largest=float(values.max()),
        zeros=int(len(values) - np.count_nonzero(values)),
        lengths=lengths,
    )


def fit(looks: Sequence[Look]) -> Segment:
    """The segment of a recipe that draws such tensors.

    Args:
        looks: at several draws of one tensor, at least `DRAWS`.

    Raises:
        MisfitError: there is none.
    """
    first = looks[0]
    if all(each.smallest == each.largest == first.smallest for each in looks):
        return Segment.constant(first.size, first.smallest)
    common = float(np.mean(looks[0].sample == looks[1].sample))
    if common > _EQUAL:
        what = "all" if common == 1 else f"{common:.1%}"
        raise MisfitError(f"{what} of it does not depend on the seed")
    if all(each.zeros > 3 + _ZEROS * each.size for each in looks):
        raise MisfitError("some of it is always zero")
    enough = -(-_SAMPLE // first.size) + 1
    pooled = np.sort(np.concatenate([each.sample for each in looks[:enough]]))
    variance = float(np.mean(pooled**2))
    if abs(float(pooled.mean())) > _DEVIATIONS * sqrt(variance / len(pooled)):
        raise MisfitError("it does not lie around zero")
    segment = _kind(looks, pooled, variance)
    for each in looks:
        _check_lengths(each, pooled, variance)
    return segment


def _kind(looks: Sequence[Look], pooled: Doubles, variance: float) -> Segment:
    size = looks[0].size
    drawn = size * len(looks)
    bound = max(max(-each.smallest, each.largest) for each in looks) * (drawn + 1) / drawn
    even = _distance(np.clip((pooled / bound + 1) / 2, 0, 1))
    normal = _distance(np.array([(1 + erf(x)) / 2 for x in pooled / sqrt(2 * variance)]))
    if min(even, normal) > _BY_CHANCE / sqrt(len(pooled)) + _CLOSE_ENOUGH:
        raise MisfitError("it is neither even nor normal")
    try:
        return Segment.uniform(size, bound) if even <= normal else Segment.normal(size, sqrt(variance))
    except ValueError as error:
        raise MisfitError(str(error)) from None


def _distance(shares: Doubles) -> float:
    """The greatest distance between sorted cumulative shares of a distribution and those of the sample itself."""
    steps = np.arange(len(shares) + 1) / len(shares)
    return float(max(np.max(steps[1:] - shares), np.max(shares - steps[:-1])))


def _check_lengths(each: Look, pooled: Doubles, variance: float) -> None:
    """Hold the variance of the squared lengths of rows, and of columns, against that of independent elements."""
    excess = float(np.mean(pooled**4)) - variance**2
    for squares in each.lengths:
        count = len(squares)
        if count <= _FEW_ROWS:
            continue
        elements = each.size / count
        ratio = float(np.var(squares, ddof=1)) / (elements * excess)
        spread = 2 / (9 * (count - 1))  # E. B. Wilson and M. M. Hilferty 1931: the cube root is nearly normal
        tails = 1 + 6 / elements  # squares of few elements vary more than normal ones
        if abs(ratio ** (1 / 3) - (1 - spread)) > _DEVIATIONS * sqrt(spread * tails):
            raise MisfitError("its rows or columns differ more, or less, than chance makes them")
