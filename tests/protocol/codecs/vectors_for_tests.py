"""Vectors that are hard on a codec: every exponent, both zeros, subnormals, ties, and clusters near a border."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

_FINITE = 0x7F7F_FFFF  # the bits of the largest float32
_SIGN = np.uint32(0x8000_0000)
SPECIALS = np.array(
    [0.0, -0.0, 2.0**-149, 2.0**-126, 2.0**-127, 2.0**-90, 2.0**-91, 1.0, 1.5, 2.0, 0.5, 3.4028235e38, 1e-45],
    np.float32,
)


def _from_bits(magnitudes: NDArray[np.uint32], negative: NDArray[np.bool_]) -> NDArray[np.float32]:
    return (magnitudes | np.where(negative, _SIGN, np.uint32(0))).astype(np.uint32).view(np.float32)


@st.composite
def hard_vectors(draw: st.DrawFn, max_size: int = 400) -> NDArray[np.float32]:
    """float32[0..max_size], finite."""
    n = draw(st.integers(0, max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    signs = rng.random(n) < draw(st.sampled_from([0.0, 0.5]))
    kind = draw(
        st.sampled_from(["any bits", "one octave", "few octaves", "ties", "long tail", "normal", "sparse"])
    )
    match kind:
        case "any bits":
            return _from_bits(rng.integers(0, _FINITE + 1, n, dtype=np.uint32), signs)
        case "one octave" | "few octaves":
            low = draw(st.integers(0, 0x7E80_0000))
            width = draw(st.integers(1, 24)) if kind == "few octaves" else 1
            high = min(low + (width << 23), _FINITE)
            return _from_bits(rng.integers(low, high + 1, n, dtype=np.uint32), signs)
        case "ties":
            return _from_bits(rng.choice(SPECIALS, n).view(np.uint32) & ~_SIGN, signs)
        case "long tail":
            tail = rng.standard_t(1.1, n) * 10.0 ** draw(st.integers(-30, 20))
            return tail.clip(-3e38, 3e38).astype(np.float32)
        case "normal":
            return (rng.standard_normal(n) * 10.0 ** draw(st.integers(-44, 37))).astype(np.float32)
        case _:
            return np.where(rng.random(n) < 0.9, 0.0, rng.standard_normal(n)).astype(np.float32)


def bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The bits, so that equality means bit for bit."""
    return np.ascontiguousarray(values).view(np.uint32)
