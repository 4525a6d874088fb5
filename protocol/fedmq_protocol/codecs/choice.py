"""Which index coder writes a message: the one that comes out smallest, within a time bound.

Coders are ranked by what they estimate, those that estimate nothing by a baseline's section: they are tried as long as
their nominal cost fits into what time is left. Clocks play no part, so the same indices give the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.registry import IndexCode

_LEAST_NS: Final = 50e6
_NS_AN_ELEMENT: Final = 10.0  # of the dense vector: 150 MB/s leave 27 for everything
_WORTH_TRYING: Final = 1.02  # estimates are this good


def smallest(indices: NDArray[np.integer], n: int, codes: Mapping[int, IndexCode]) -> tuple[int, bytes]:
    """Code the indices by whichever coder writes least.

    Args:
        indices: int[k], strictly increasing below n.
        n: length of the vector.
        codes: those allowed, by the upper half of the tag; the first is used whatever it costs.

    Returns:
        The coder's key, and the section.
    """
    (first, baseline), *others = codes.items()
    key, section = first, baseline.encode(indices, n)
    left_ns = _LEAST_NS + _NS_AN_ELEMENT * n
    ranked = sorted(
        (code.estimate(indices, n) if code.estimate is not None else -inf, code.cost_ns, other)
        for other, code in others
        if code.cost_ns * len(indices) <= left_ns
    )
    for estimate, cost_ns, other in ranked:
        cost = cost_ns * len(indices)
        if cost <= left_ns and estimate < _WORTH_TRYING * len(section):
            left_ns -= cost
            tried = codes[other].encode(indices, n)
            if len(tried) < len(section):
                key, section = other, tried
    return key, section
