"""Payloads of the elements that are worth most: a head, coded indices, coded values."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import body, signs
from fedmq_protocol.codecs.budget import fill
from fedmq_protocol.codecs.choice import smallest
from fedmq_protocol.codecs.decoded import Float32Array, Sparse, UInt32Array, frozen
from fedmq_protocol.codecs.grid_model import Shapes
from fedmq_protocol.codecs.registry import INDEX_CODES, KEPT_VALUES, CodecSpec, KeptValues
from fedmq_protocol.codecs.rounding import Stochastic
from fedmq_protocol.codecs.shares import select_shares
from fedmq_protocol.codecs.slices import Source
from fedmq_protocol.codecs.topk import select
from fedmq_protocol.errors import CodecError

HEAD: Final = struct.Struct("<BIII")
"""Tag, n, k, bytes of indices."""


def longest(n: int, spec: CodecSpec) -> int:
    """The longest payload for a vector of n of the codec agreed on, its budget aside."""
    k = spec.kept(n)
    indices = next(iter(spec.index_codes().values())).max_bytes(n, k)
    return HEAD.size + indices + body.FLAG_BYTES + KEPT_VALUES[spec.codec.values].body_bytes(k)


def longest_of_all(n: int, max_kept: int) -> int:
    """The longest payload for a vector of n with up to so many elements, of whatever codec."""
    indices = max(code.max_bytes(n, max_kept) for code in INDEX_CODES.values())
    indices += max_kept // 8 + 1  # for fewer elements the bound may be higher, by a bit for each
    values = max(code.body_bytes(max_kept) for code in KEPT_VALUES.values())
    return HEAD.size + indices + body.FLAG_BYTES + values


def encode(
    source: Source, spec: CodecSpec, rounding: Stochastic | None, shapes: Shapes | None
) -> tuple[bytes, Sparse]:
    """Write as many elements as the density says, or as fit into the budget.

    Args:
        source: float32[n].
        spec: how.
        rounding: chance; None for the nearest level.
        shapes: of the tensors that make up the vector, where the decoder knows them.

    Returns:
        The payload, and what it decodes to.

    Raises:
        ValueError: the vector is not finite, or not even one element fits into the budget.
    """
    n = len(source)
    if spec.max_bytes is None or n == 0:
        return _encode_kept(source, select_shares(source, spec.tensors, spec.share), spec, rounding, shapes)
    choice = _Choice(source, spec.tensors)
    return fill(
        spec.max_bytes, spec.kept(n), lambda k: _encode_kept(source, choice.of(k), spec, rounding, shapes)
    )


def kept_in(view: memoryview, n: int, max_kept: int) -> int:
    """How many elements a payload says that it has.

    Raises:
        CodecError: more than may come, or it ends before it says.
    """
    if len(view) < HEAD.size:
        raise CodecError("the payload ends within its head")
    k: int = HEAD.unpack_from(view)[2]
    if k > max_kept:
        raise CodecError(
            f"{k} elements, at most {max_kept} may come", reason="malformed" if k > n else "too-large"
        )
    return k


def decode(view: memoryview, n: int, k: int, shapes: Shapes | None) -> Sparse:
    """Read a payload whose tag, n and k have been checked.

    Raises:
        CodecError: it is malformed.
    """
    tag, _, _, index_bytes = HEAD.unpack_from(view)
    index_code, code = INDEX_CODES[tag >> 4], KEPT_VALUES[tag & 15]
    rest = view[HEAD.size :]
    if index_bytes > len(rest):
        raise CodecError("the payload ends within its indices")
    indices = index_code.decode(rest[:index_bytes], n, k, shapes)
    content = _unwrapped(rest[index_bytes:], code, indices, shapes or [(n,)])
    values = code.dequantise(content, k)
    frozen(indices)
    frozen(values)
    return Sparse(n, indices, values)


class _Choice:
    """Selections for one trial after another: a narrower one than the widest so far looks at nothing else.

    Args:
        source: float32[n].
        tensors: their lengths, if a share is kept of each.
    """

    def __init__(self, source: Source, tensors: tuple[int, ...]) -> None:
        self._source, self._tensors = source, tensors
        self._indices: NDArray[np.int64] = np.empty(0, np.int64)
        self._values: Float32Array = np.empty(0, np.float32)

    def of(self, k: int) -> NDArray[np.int64]:
        """The indices of k elements of the whole, or of k / n of each tensor."""
        if self._tensors:
            return select_shares(self._source, self._tensors, Fraction(k, len(self._source)))
        if k > len(self._indices):
            self._indices = select(self._source, k)
            self._values = self._source[self._indices]
        return self._indices[select(self._values, k)]


def _encode_kept(
    source: Source,
    candidates: NDArray[np.int64],
    spec: CodecSpec,
    rounding: Stochastic | None,
    shapes: Shapes | None,
) -> tuple[bytes, Sparse]:
    n, values = len(source), spec.codec.values
    picked = source[candidates]
    if not np.isfinite(picked).all():  # an infinity is among the largest, and a NaN was refused
        raise ValueError("the vector is not finite")
    kept, coded, sent = KEPT_VALUES[values].quantise(picked, rounding)
    indices = candidates[kept].astype(np.uint32)
    coder, section = smallest(indices, n, spec.index_codes(), shapes=shapes, code_ms=spec.code_ms)
    head = HEAD.pack(coder << 4 | values, n, len(indices), len(section))
    frozen(indices)
    frozen(sent)
    return head + section + _wrapped(coded, indices, n, spec, shapes or [(n,)]), Sparse(n, indices, sent)


def _wrapped(coded: bytes, indices: UInt32Array, n: int, spec: CodecSpec, shapes: Shapes) -> bytes:
    """The values' body, as short as may be."""
    wrapped, symbols = body.wrap(coded), KEPT_VALUES[spec.codec.values].symbols
    if symbols is not None and len(indices) and spec.expects_signs(n, len(indices), shapes):
        expected = bytes([body.SIGNS]) + signs.encode(coded, symbols, indices, shapes)
        if len(expected) < len(wrapped):
            return expected
    return wrapped


def _unwrapped(section: memoryview, code: KeptValues, indices: UInt32Array, shapes: Shapes) -> memoryview:
    """The body back."""
    size = code.body_bytes(len(indices))
    if code.symbols is None or not len(section) or section[0] != body.SIGNS:
        return body.unwrap(section, size)
    if len(section) > size:
        raise CodecError("values that take more bytes than they should")
    return memoryview(signs.decode(section[body.FLAG_BYTES :], code.symbols, indices, shapes))
