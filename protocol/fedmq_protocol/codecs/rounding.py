"""Rounding by chance: a value between two levels takes the upper one as often as it is near it.

Over many roundings the error then averages out, which helps where nothing else remembers it. The stream of chance is
an argument, and what it gives for an element depends on the element's place alone, so that a long vector can be
rounded slice by slice, and twice.
"""

from __future__ import annotations

import numpy as np

from fedmq_protocol.codecs.decoded import Float32Array


class Stochastic:
    """One vector's worth of chance.

    Args:
        rng: the stream that it comes from; one number is drawn.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._key = int(rng.integers(1 << 62))

    def levels(self, quotients: Float32Array, start: int) -> Float32Array:
        """Each quotient rounded down or up; down to zero up to one half, whatever the chances.

        Half a level is the least that may be sent: less would be off by more than leaving it out, and what error
        feedback keeps of it would be no float32.

        Args:
            quotients: value / scale, float32 of any shape.
            start: place of the first in the vector.
        """
        chance = np.random.Generator(np.random.Philox(key=[self._key, start]))
        magnitudes = np.abs(quotients)
        rounded = np.floor(magnitudes + chance.random(quotients.shape, np.float32))
        return np.copysign(np.where(magnitudes <= np.float32(0.5), np.float32(0.0), rounded), quotients)


def to_levels(quotients: Float32Array, start: int, rounding: Stochastic | None) -> Float32Array:
    """To integers: the nearest, halves to even, or by chance."""
    return np.rint(quotients) if rounding is None else rounding.levels(quotients, start)
