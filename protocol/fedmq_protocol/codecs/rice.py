"""Sorted indices as Rice-coded gaps, with a parameter for each block of 64.

The gap before index i_j is g_j = i_j - i_{j-1} - 1 (with i_{-1} = -1). A Rice code with parameter r writes g >> r in
unary and the low r bits as they are (R. F. Rice, JPL 79-22; S. W. Golomb, IEEE Trans. Inf. Theory 12, 1966). For
indices that lie as if by chance it costs 0.03 bit more than the entropy. Updates cluster by layer, row and column, so
each block of 64 gaps chooses its own r.

The unary parts and the low bits lie in separate streams, so that NumPy reads either at once. A section for k > 0:

- base, one byte, at most 31;
- for each block a nibble, high one first: the block's r is base + nibble, at most 31;
- for each block the low r bits of its gaps, the last block filled up with zeros to a multiple of eight gaps, which
  makes a whole number of bytes; the highest bit first;
- for each gap g >> r zeros and a one, the highest bit first; zeros up to the end of the byte.

For k = 0 the section is empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import nibbles
from fedmq_protocol.codecs.decoded import UInt32Array
from fedmq_protocol.errors import CodecError

BLOCK: Final = 64
MAX_PARAMETER: Final = 31
_PARAMETERS: Final = 16  # what a nibble above the base can say
_SAFE_SUM: Final = 1 << 61
_BLOCKS_AT_ONCE: Final = 256  # are read, so that temporaries stay in the cache

_Bytes = NDArray[np.uint8]
_Ints = NDArray[np.int64]
_Gaps = NDArray[np.int32]

_LANES: Final[_Ints] = np.arange(BLOCK, dtype=np.int64)


def max_bytes(n: int, k: int) -> int:
    """The most that `encode` writes for k of n indices.

    A block of c gaps that average m costs c (m + 1) bits with r = 0 and at most c (log2 m + 3) with r = floor(log2 m);
    the encoder takes a parameter as good as the better of these. log2 is concave, so the sum is at most that of even
    gaps, m = n / k. Blocks more than 128 times as sparse as the mean are out of the nibble's reach and add at most
    k / 128 bits.
    """
    if k == 0:
        return 0
    bits = min(n, k * ((n // k).bit_length() + 3)) + k // 128
    last_block_padding = 7 * MAX_PARAMETER // 8 + 1
    return 1 + nibbles.packed_bytes(_blocks(k)) + bits // 8 + 2 + last_block_padding


def encode(indices: NDArray[np.integer], n: int) -> bytes:
    """Code strictly increasing indices below `n`.

    Args:
        indices: int[k].
        n: length of the vector they point into, at most 2**31 - 1.

    Returns:
        At most `max_bytes(n, k)` bytes; none for k = 0.

    Raises:
        ValueError: the indices are not strictly increasing within 0..n-1.
    """
    k = len(indices)
    if k == 0:
        return b""
    if indices[0] < 0 or indices[-1] >= n:
        raise ValueError(f"indices must increase strictly within 0..{n - 1}")
    places: _Gaps = indices.astype(np.int32)
    gaps: _Gaps = np.diff(places, prepend=np.int32(-1)) - np.int32(1)
    del places
    if gaps.min() < 0:
        raise ValueError(f"indices must increase strictly within 0..{n - 1}")
    rows = _in_blocks(gaps)
    del gaps
    base = max(0, (n // k).bit_length() - _PARAMETERS // 2)
    parameters = _best_parameters(rows, k, base)

    ends = np.cumsum((rows >> _column(parameters)).reshape(-1)[:k] + np.int32(1), dtype=np.int64)
    unary = np.zeros(int(ends[-1]), np.uint8)
    unary[ends - 1] = 1
    ones = np.packbits(unary)
    del ends, unary

    starts, total = _layout(parameters, k)
    remainders = np.empty(total, np.uint8)
    for blocks, width, r in _groups(parameters, k):
        packed = _pack(rows[blocks, :width], r)
        remainders[starts[blocks, None] + np.arange(packed.shape[1])] = packed
    head = bytes([base]) + nibbles.pack((parameters - base).astype(np.uint8))
    return head + remainders.tobytes() + ones.tobytes()


def decode(section: memoryview, n: int, k: int) -> UInt32Array:
    """The indices back.

    Args:
        section: what `encode` wrote, and nothing after it.
        n: length of the vector they point into.
        k: how many there are, 0 <= k <= n; the caller has checked that n itself is acceptable.

    Returns:
        uint32[k], strictly increasing, each below `n`.

    Raises:
        CodecError: the section is not exactly the code of such indices. Whatever it says, no more memory is taken
            than 48 bytes for each of k and two for each of n.
    """
    if not 0 <= k <= n:
        raise CodecError(f"{k} indices into a vector of {n}")
    if len(section) > max_bytes(n, k):
        raise CodecError(
            f"{len(section)} bytes of indices, at most {max_bytes(n, k)} fit", reason="too-large"
        )
    if k == 0:
        return np.empty(0, np.uint32)
    head = 1 + nibbles.packed_bytes(_blocks(k))
    if len(section) < head:
        raise CodecError("the indices end within their parameters")
    parameters = _read_parameters(section[:head], k)
    starts, total = _layout(parameters, k)
    body: _Bytes = np.frombuffer(section[head:], np.uint8)
    if len(body) <= total:
        raise CodecError("the indices end within their low bits")

    gaps = _read_unary(body[total:], k)
    if (
        k * (8 * len(body) << int(parameters.max())) > _SAFE_SUM
        and (  # or the sum below is exact, and says it
            (gaps > ((n - 1) >> parameters).repeat(BLOCK)[:k]).any()
        )
    ):
        raise CodecError("a gap reaches past the end of the vector")
    gaps <<= parameters.repeat(BLOCK)[:k]
    for first in range(0, len(parameters), _BLOCKS_AT_ONCE):
        some = slice(first, first + _BLOCKS_AT_ONCE)
        end = int(starts[some.stop]) if some.stop < len(starts) else total
        low = _read_low(body[:end], starts[some], parameters[some])
        of_these = gaps[first * BLOCK : some.stop * BLOCK]
        if low[len(of_these) :].any():  # within the last block's bytes, or zero as what is read behind them
            raise CodecError("the filling of the last block is not zero")
        of_these += low[: len(of_these)]
    gaps += 1
    gaps[0] -= 1
    indices = gaps.cumsum(out=gaps)  # of at most 2**31 gaps below 2**32, or as few as above: no overflow
    if indices[-1] >= n:
        raise CodecError("an index reaches past the end of the vector")
    return indices.astype(np.uint32)


def _blocks(k: int) -> int:
    return -(-k // BLOCK)


def _in_blocks(gaps: _Gaps) -> _Gaps:
    """int32[k] -> int32[blocks, 64], the last block filled with zeros."""
    padded = np.zeros(_blocks(len(gaps)) * BLOCK, np.int32)
    padded[: len(gaps)] = gaps
    return padded.reshape(-1, BLOCK)


def _best_parameters(rows: _Gaps, k: int, base: int) -> _Ints:
    """For each block the cheapest of floor(log2 mean) - 1, that, and + 1, within the nibble's reach."""
    counts = np.full(len(rows), BLOCK)
    counts[-1] = k - BLOCK * (len(rows) - 1)
    means = np.maximum(rows.sum(axis=1) // counts, 1)
    middle = np.frexp(means)[1] - 1
    candidates = [
        np.clip(middle + step, base, min(base + _PARAMETERS - 1, MAX_PARAMETER)) for step in (-1, 0, 1)
    ]
    costs = [(rows >> _column(r)).sum(axis=1) + r * counts for r in candidates]
    best: _Ints = np.choose(np.argmin(costs, axis=0), candidates).astype(np.int64)
    return best


def _layout(parameters: _Ints, k: int) -> tuple[_Ints, int]:
    """Where each block's low bits start, and how many bytes all take."""
    sizes = parameters * (BLOCK // 8)
    sizes[-1] = parameters[-1] * (_last_width(k) // 8)
    ends: _Ints = np.cumsum(sizes)
    return ends - sizes, int(ends[-1])


def _groups(parameters: _Ints, k: int) -> Iterator[tuple[_Ints, int, int]]:
    """Blocks that are packed alike: their numbers, gaps in each (a multiple of eight), and r > 0."""
    full, last = parameters[:-1], int(parameters[-1])
    for r in np.unique(full[full > 0]).tolist():
        yield np.flatnonzero(full == r), BLOCK, r
    if last > 0:
        yield np.array([len(full)]), _last_width(k), last


def _last_width(k: int) -> int:
    return 8 * (((k - 1) % BLOCK) // 8 + 1)


def _column(parameters: _Ints) -> _Gaps:
    """int64[blocks] -> int32[blocks, 1], to shift rows by without widening them."""
    column: _Gaps = parameters[:, None].astype(np.int32)
    return column


def _pack(gaps: _Gaps, r: int) -> _Bytes:
    """The low r bits of int64[blocks, width] -> uint8[blocks, r * width / 8]."""
    bits = np.empty((*gaps.shape, r), np.uint8)
    for place in range(r):
        bits[:, :, place] = (gaps >> (r - 1 - place)) & 1
    return np.packbits(bits.reshape(len(gaps), -1), axis=1)


def _read_low(body: _Bytes, starts: _Ints, parameters: _Ints) -> _Ints:
    """The low bits of int64[blocks * 64] gaps; zero where the last block has none.

    Each gap's bits are cut out of as many bytes as hold them wherever they begin; behind `body` are zeros.

    Args:
        body: uint8[], up to the last byte of these blocks.
        starts: int64[blocks], their first bytes.
        parameters: int64[blocks].
    """
    begin = int(starts[0])
    num_bytes = (int(parameters.max()) + 7 + 7) // 8  # of any one gap's bits
    padded = np.zeros(int(starts[-1]) - begin + MAX_PARAMETER * (BLOCK // 8) + num_bytes, np.uint8)
    padded[: len(body) - begin] = body[begin:]
    size = len(padded) - num_bytes + 1
    windows = np.zeros(size, np.int64)
    for place in range(num_bytes):
        windows <<= 8
        windows |= padded[place : place + size]
    bits = parameters[:, None]
    at = bits * _LANES
    at += (starts[:, None] - begin) * 8
    low = windows.take(at >> 3)
    at &= 7
    np.subtract(8 * num_bytes - bits, at, out=at)
    low >>= at
    low &= (1 << bits) - 1
    return low.reshape(-1)


def _read_unary(stream: _Bytes, k: int) -> _Ints:
    """int64[k] from k runs of zeros, each ended by a one; the last one lies in the last byte."""
    ones: _Ints = np.unpackbits(stream).view(np.bool_).nonzero()[0]
    if len(ones) != k or stream[-1] == 0:
        raise CodecError(f"expected {k} gaps, found {len(ones)}, or bytes after the last")
    runs = np.empty(k, np.int64)
    runs[0] = ones[0]
    np.subtract(ones[1:], ones[:-1], out=runs[1:])
    runs[1:] -= 1
    return runs


def _read_parameters(head: memoryview, k: int) -> _Ints:
    parameters = head[0] + nibbles.unpack(head[1:], _blocks(k)).astype(np.int64)
    if parameters.max() > MAX_PARAMETER:
        raise CodecError("a Rice parameter is out of range")
    return parameters
