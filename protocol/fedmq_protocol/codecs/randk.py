"""rand-k: indices that a seed stands for, so that they cost nothing and two who know the seed have the same ones.

The k indices are drawn without replacement: candidates come from a Philox stream, one a word, and the first k distinct
ones are taken, so that every set of k is equally likely. A word's highest bits, as many as n - 1 has, are a candidate;
those that are n or more are passed over. Where more than half are wanted, the n - k that are left out are drawn.

A mask that does not look at the values is what secure aggregation needs: all who share the seed add up the same
elements, and who sees a mask learns nothing of the data. It is also unbiased when values are scaled by n / k, in
expectation over the seed; with error feedback they are not scaled (S. U. Stich, J.-B. Cordonnier and M. Jaggi,
"Sparsified SGD with memory", NeurIPS 2018).
"""

from __future__ import annotations

import hashlib
import struct
from math import log1p, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import philox
from fedmq_protocol.codecs.decoded import Float32Array, UInt32Array
from fedmq_protocol.errors import CodecError

SECTION_BYTES: Final = 8

_SEED: Final = struct.Struct("<Q")
_CONTEXT: Final = b"fedmq rand-k"
_ORDER: Final = struct.Struct(">QQ")


def shared_seed(run_seed: int, version: int) -> int:
    """The seed of the mask that all share who train on one version.

    The first eight bytes, little-endian, of SHA-256("fedmq rand-k" || run_seed || version), both eight bytes,
    big-endian.
    """
    digest = hashlib.sha256(_CONTEXT + _ORDER.pack(run_seed, version)).digest()
    seed: int = _SEED.unpack_from(digest)[0]
    return seed


def indices(seed: int, n: int, k: int) -> UInt32Array:
    """The k indices below n that `seed` stands for, in increasing order.

    Args:
        seed: 0..2**64 - 1.
        n: length of the vector, at most 2**31 - 1.
        k: how many, 0 <= k <= n.

    Returns:
        uint32[k], strictly increasing. Takes memory in proportion to k, and n bytes where k is above n / 2.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k={k} is outside 0..{n}")
    if k <= n // 2:
        return _first_distinct(seed, n, k)
    kept = np.ones(n, np.bool_)
    kept[_first_distinct(seed, n, n - k)] = False
    return np.flatnonzero(kept).astype(np.uint32)


def unbiased(values: Float32Array, n: int) -> Float32Array:
    """Kept values scaled so that what decodes is right in expectation: float32[k] times n / k, rounded to float32.

    For vectors without error feedback alone: with it, what is not sent is not lost but comes later.
    """
    return values * np.float32(n / max(1, len(values)))


def write(seed: int) -> bytes:
    """The section of a payload."""
    return _SEED.pack(seed)


def read(section: memoryview, n: int, k: int) -> UInt32Array:
    """The indices that a section stands for.

    Args:
        section: what `write` wrote.
        n: length of the vector.
        k: how many indices, at most n; whoever calls has checked it.

    Raises:
        CodecError: the section is not eight bytes long.
    """
    if len(section) != SECTION_BYTES:
        raise CodecError(f"a seed of {len(section)} bytes")
    return indices(_SEED.unpack(section)[0], n, k)


def _first_distinct(seed: int, n: int, k: int) -> UInt32Array:
    """The first k distinct candidates of the stream, sorted; k is at most n / 2."""
    if k == 0:
        return np.empty(0, np.uint32)
    unused_bits = 32 - (n - 1).bit_length()  # 1 to 31, since k > 0 means n > 1
    share = n / 2 ** (n - 1).bit_length()  # of the words that are candidates
    wanted = -n * log1p(-k / n) / share  # expected words until k distinct candidates have come
    blocks, done = int(wanted + 4 * sqrt(wanted)) // 4 + 2, 0
    candidates: NDArray[np.uint32] = np.empty(0, np.uint32)
    while True:
        drawn = philox.words(seed, philox.INDICES, 0, done, blocks)
        done += blocks
        drawn >>= np.uint32(unused_bits)
        candidates = np.concatenate([candidates, drawn[drawn < n]])
        distinct, first = np.unique(candidates, return_index=True)
        if len(distinct) >= k:
            last = np.partition(first, k - 1)[k - 1]
            return np.asarray(distinct[first <= last], np.uint32)
        blocks = blocks // 8 + 1
