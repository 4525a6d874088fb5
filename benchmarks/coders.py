"""Every way to code a set of indices that was tried, each as the bits that it takes, headers included.

Those of the project write real sections. Of the others some are lengths alone, worked out from the code's definition:
what counts here is how far they get, not that they run. Shared by `codecs`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from math import exp, lgamma, log, log2, prod
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedmq_protocol.codecs import grid, rice

Indices = NDArray[np.int64]
Shapes = Sequence[Sequence[int]]
Coder = Callable[[Indices, int, Shapes], float]
"""int[k], n and the tensors' shapes -> bits."""

_ZSTD_LEVEL: Final = 19
_HEADER_BITS: Final = 32  # where a code would need a few numbers of its own


def even(indices: Indices, n: int, _: Shapes) -> float:
    """log2 C(n, k): what sets cost of which nothing is known but their size. No coder, a bound for even ones."""
    k = len(indices)
    return (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)


def gaps_of(indices: Indices) -> Indices:
    """How many are skipped before each."""
    gaps: Indices = np.diff(indices, prepend=-1) - 1
    return gaps


def rice_blocks(indices: Indices, n: int, _: Shapes) -> float:
    """The project's Rice code."""
    return 8.0 * len(rice.encode(indices, n))


def rice_whole(indices: Indices, n: int, _: Shapes) -> float:
    """Rice codes with one parameter for all."""
    gaps = gaps_of(indices)
    return _HEADER_BITS + min(float(np.sum((gaps >> r) + 1 + r)) for r in range(n.bit_length()))


def rice_turned(indices: Indices, n: int, shapes: Shapes) -> float:
    """The project's Rice code with every matrix transposed."""
    turned, start = [], 0
    for shape in shapes:
        size = prod(shape)
        local = indices[(indices >= start) & (indices < start + size)] - start
        rows = shape[0] if len(shape) > 1 else 1
        turned.append(start + np.sort(local % (size // rows) * rows + local // (size // rows)))
        start += size
    return rice_blocks(np.concatenate(turned), n, shapes)


def rice_tensors(indices: Indices, _: int, shapes: Shapes) -> float:
    """The project's Rice code, each tensor by itself, two bytes for its count."""
    bits, start = 0.0, 0
    for shape in shapes:
        size = prod(shape)
        local = indices[(indices >= start) & (indices < start + size)] - start
        bits += 16 + rice_blocks(local, size, shapes)
        start += size
    return bits


def elias_fano(indices: Indices, n: int, _: Shapes) -> float:
    """Low bits as they are, high ones in unary."""
    low = max(0, (n // len(indices)).bit_length() - 1)
    return _HEADER_BITS + float(len(indices) * (low + 1) + (n >> low))


def varint_zstd(indices: Indices, _n: int, _: Shapes) -> float:
    """Gaps as LEB128, then zstd."""
    gaps = gaps_of(indices)
    planes = [(gaps >> 7 * place) & 127 | ((gaps >> 7 * (place + 1)) > 0) * 128 for place in range(5)]
    used = np.stack([np.ones(len(gaps), bool), *((gaps >> 7 * place) > 0 for place in range(1, 5))], axis=1)
    return _zstd(np.stack(planes, axis=1)[used].astype(np.uint8).tobytes())


def bitmap_zstd(indices: Indices, n: int, _: Shapes) -> float:
    """A bit an element, then zstd."""
    bitmap = np.zeros(n, np.uint8)
    bitmap[indices] = 1
    return _zstd(np.packbits(bitmap).tobytes())


def _zstd(data: bytes) -> float:
    return 8.0 * len(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data))


def gaps_static(indices: Indices, _n: int, _: Shapes) -> float:
    """An ideal entropy coder of quarter-octaves of gaps with a table sent before, the rest of each gap as it is."""
    buckets, rest = _buckets(gaps_of(indices))
    counts = np.bincount(buckets)
    return _table_bits(counts) + _entropy(counts) + float(rest.sum())


def _buckets(gaps: Indices) -> tuple[Indices, Indices]:
    """Quarter-octaves of gap + 1, and how many bits are left to say."""
    whole = np.frexp((gaps + 1).astype(np.float64))[1].astype(np.int64) - 1
    rest = np.maximum(whole - 2, 0)
    return 4 * whole + ((gaps + 1) >> rest) - (1 << np.minimum(whole, 2)), rest


def _entropy(counts: Indices) -> float:
    used = counts[counts > 0].astype(np.float64)
    return float(-(used * np.log2(used / used.sum())).sum())


def _table_bits(counts: Indices) -> float:
    return _HEADER_BITS + len(counts) + 6.0 * float(np.count_nonzero(counts))


def gaps_adaptive(indices: Indices, n: int, shapes: Shapes) -> float:
    """An ideal adaptive binary coder of gaps: their octave in unary, three bits below it; no context."""
    return _adaptive(indices, n, shapes, 0.0)


def gaps_context(indices: Indices, n: int, shapes: Shapes) -> float:
    """The same, the octave in the context of a running mean of the logarithms of gaps."""
    return _adaptive(indices, n, shapes, 0.12)


def _adaptive(indices: Indices, n: int, _: Shapes, rate: float) -> float:
    counts: dict[tuple[int, int, int], list[float]] = {}
    mean, bits = log2(n / len(indices)), float(_HEADER_BITS)

    def cost(context: tuple[int, int, int], bit: int) -> float:
        seen = counts.setdefault(context, [0.5, 0.5])
        share = seen[bit] / (seen[0] + seen[1])
        seen[bit] += 1.0
        return -log2(share)

    for value in (gaps_of(indices) + 1).tolist():
        octave = value.bit_length() - 1
        context = int(2 * mean) if rate else 0
        bits += sum(cost((context, -1, each), each == octave) for each in range(octave + 1))
        node = 1
        for place in range(octave - 1, max(octave - 4, -1), -1):
            bit = value >> place & 1
            bits += cost((octave, node, 0), bit)
            node = 2 * node + bit
        bits += max(octave - 3, 0)
        mean += rate * (log2(value + 0.5) - mean)
    return bits


def mixed(indices: Indices, n: int, shapes: Shapes) -> float:
    """An ideal coder of every element, mixing what row, column, neighbours and all suggest in the logistic domain.

    As in M. V. Mahoney's PAQ: weights are learnt on the way. It takes microseconds for each element of the vector.
    """
    hit = np.zeros(n, bool)
    hit[indices] = True
    bits, start = float(_HEADER_BITS), 0
    for shape in shapes:
        size = prod(shape)
        rows = shape[0] if len(shape) > 1 else 1
        if size:
            bits += _mixed_tensor(hit[start : start + size].reshape(rows, -1), len(indices) / n)
        start += size
    return bits


def _mixed_tensor(hit: NDArray[np.bool_], prior: float) -> float:
    rows, columns = hit.shape
    weights = [0.5, 0.5, 0.3, 0.2]
    by_column = [1.0] * columns
    near, far, total, seen, bits = prior, prior, 50 * prior, 50.0, 0.0
    for r in range(rows):
        row_hits, rate = 2.0, total / seen
        for c, bit in enumerate(hit[r].tolist()):
            overall = _logit(total / seen)
            inputs = (
                _logit(row_hits / (c + 2 / rate)) - overall,
                _logit(by_column[c] / (r + seen / total)) - overall,
                _logit(near) - overall,
                _logit(far) - overall,
            )
            raised = overall + sum(w * x for w, x in zip(weights, inputs, strict=True))
            share = min(max(1 / (1 + exp(-raised)), 1e-6), 0.999)
            bits -= log2(share if bit else 1 - share)
            error = 0.002 * (bit - share)
            weights = [w + error * x for w, x in zip(weights, inputs, strict=True)]
            near += 0.01 * (bit - near)
            far += 0.002 * (bit - far)
            total, seen = total + bit, seen + 1
            row_hits += bit
            by_column[c] += bit
    return bits


def _logit(share: float) -> float:
    share = min(max(share, 1e-5), 0.999)
    return log(share / (1 - share))


def grid_code(indices: Indices, n: int, shapes: Shapes) -> float:
    """The project's grid code."""
    return 8.0 * len(grid.encode(indices, n, shapes))


def _pcodec(indices: Indices, _n: int, _: Shapes) -> float:
    """Pcodec of the gaps at its highest level."""
    standalone, config = importlib.import_module("pcodec.standalone"), importlib.import_module("pcodec")
    made = standalone.simple_compress(
        gaps_of(indices).astype(np.uint32), config.ChunkConfig(compression_level=12)
    )
    return 8.0 * len(made)


def _constriction(indices: Indices, _n: int, _: Shapes) -> float:
    """Constriction's ANS coder of quarter-octaves with a table, the rest of each gap as it is."""
    stream = importlib.import_module("constriction").stream
    buckets, rest = _buckets(gaps_of(indices))
    counts = np.bincount(buckets)
    model = stream.model.Categorical((counts / counts.sum()).astype(np.float64), perfect=False)
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(buckets.astype(np.int32), model)
    return 32.0 * len(coder.get_compressed()) + _table_bits(counts) + float(rest.sum())


CODERS: Final[dict[str, Coder]] = {
    "rice": rice_blocks,
    "grid": grid_code,
    "rice, one parameter": rice_whole,
    "rice, transposed": rice_turned,
    "rice, by tensor": rice_tensors,
    "elias-fano": elias_fano,
    "varint + zstd": varint_zstd,
    "bitmap + zstd": bitmap_zstd,
    "gaps, static (ideal)": gaps_static,
    "gaps, adaptive (ideal)": gaps_adaptive,
    "gaps, context (ideal)": gaps_context,
}
SLOW: Final[dict[str, Coder]] = {"every element, mixed (ideal)": mixed}
OPTIONAL: Final[dict[str, tuple[str, Coder]]] = {
    "pcodec": ("pcodec", _pcodec),
    "constriction": ("constriction", _constriction),
}
"""By name: the package that must be there, and the coder."""


def available(*, slow: bool) -> dict[str, Coder]:
    """All that can be tried here."""
    found = CODERS | (SLOW if slow else {})
    for name, (package, coder) in OPTIONAL.items():
        if importlib.util.find_spec(package) is not None:
            found = {**found, name: coder}
    return found
