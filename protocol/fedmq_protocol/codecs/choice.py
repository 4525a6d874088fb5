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

from fedmq_protocol.codecs.grid_model import Shapes
from fedmq_protocol.codecs.registry import IndexCode

_WORTH_TRYING: Final = 1.02  # estimates are this good


def smallest(
    indices: NDArray[np.integer],
    n: int,
    codes: Mapping[int, IndexCode],
    *,
    shapes: Shapes | None = None,
    code_ms: float,
) -> tuple[int, bytes]:
    """Code the indices by whichever coder writes least.

    Args:
        indices: int[k], strictly increasing below n.
        n: length of the vector.
        codes: those allowed, by the upper half of the tag; the first is used whatever it costs.
        shapes: of the tensors that make up the vector; None where they are not known.
        code_ms: what all the others together may cost, in nominal milliseconds.

    Returns:
        The coder's key, and the section.
    """
    (first, baseline), *others = codes.items()
    key, section = first, baseline.encode(indices, n, shapes)
    left_ns = 1e6 * code_ms
    ranked = sorted(
        (code.estimate(indices, n, shapes) if code.estimate is not None else -inf, cost_ns, other)
        for other, code in others
        if (cost_ns := code.cost_ns(n, len(indices), shapes)) <= left_ns
    )
    for estimate, cost_ns, other in ranked:
        if cost_ns <= left_ns and estimate < _WORTH_TRYING * len(section):
            left_ns -= cost_ns
            tried = codes[other].encode(indices, n, shapes)
            if len(tried) < len(section):
                key, section = other, tried
    return key, section
