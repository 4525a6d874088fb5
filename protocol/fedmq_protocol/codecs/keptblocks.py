"""Kept values in blocks of 64, each with its own scale: eight or four bits a value.

Where magnitudes differ from layer to layer, a scale for every 64 of them is finer than one for all (`linear8`), and
cheaper than levels that reach from the smallest to the largest (`log4`). The body is the one of `blockwise` for the
kept values in the order of their indices, and exactness is argued there.

Values whose level would be zero are not sent. Leaving them out moves others to other blocks, where one may get the
level zero after all; such a one is sent as zero, and stays in the residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.blockwise import INT4, INT8, Blockwise
from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.rounding import Stochastic


@dataclass(frozen=True)
class KeptBlocks:
    """Kept values as blocks of one width.

    Attributes:
        blocks: the dense code whose body this is.
    """

    blocks: Blockwise

    def body_bytes(self, count: int) -> int:
        """Length of the body for `count` values, before compression."""
        return self.blocks.body_bytes(count)

    def quantise(
        self, x: Float32Array, rounding: Stochastic | None = None
    ) -> tuple[NDArray[np.bool_], bytes, Float32Array]:
        """Code what is worth it.

        Args:
            x: float32[count], finite.
            rounding: chance; None for the nearest level.

        Returns:
            Which elements are sent, bool[count]; the body for those; their float32 values as they will be decoded.
        """
        body, sent = self.blocks.quantise(x, rounding)
        kept = sent != 0
        if not kept.all():
            body, sent = self.blocks.quantise(x[kept], rounding)
        return kept, body, sent

    def dequantise(self, body: memoryview, count: int) -> Float32Array:
        """The body, of the right length -> float32[count].

        Raises:
            CodecError: as `Blockwise.dequantise`.
        """
        return self.blocks.dequantise(body, count)


KEPT8: Final = KeptBlocks(INT8)
KEPT4: Final = KeptBlocks(INT4)
