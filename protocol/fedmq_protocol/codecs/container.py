"""An update or a model as bytes, and back: what to send, how to write it, and what stays behind.

A payload is one tag byte, whose upper half says how indices are coded (0: none, the vector is dense) and whose lower
half how values are; then counts; then the coded indices and values. `docs/protocol-codecs.md` has the layout to the
bit, and `registry` what there is to choose from.

**Error feedback loses nothing.** For p = delta + old residual, `split` gives sent and residual with
sent + residual = p, where the sum may be taken in real numbers or in float32: both are exact. What is not sent stays
in the residual as it is. What is sent was quantised to a value from which float32 subtraction is exact; each value
code proves it for its own levels (`blockwise`, `log4`, `sign1`). If p - q is a float32 r, then q + r = p needs no
rounding either. One bit is not kept: -0 is read as +0.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Final

import numpy as np

from fedmq_protocol.codecs import body
from fedmq_protocol.codecs.choice import smallest
from fedmq_protocol.codecs.decoded import Decoded, Dense, Float32Array, Sparse, frozen
from fedmq_protocol.codecs.registry import (
    CODECS,
    DENSE_VALUES,
    INDEX_CODES,
    KEPT_VALUES,
    CodecSpec,
    DenseValues,
)
from fedmq_protocol.codecs.topk import select
from fedmq_protocol.errors import CodecError
from fedmq_protocol.limits import MAX_PARAMETERS

TINY: Final = 64
"""Vectors up to this long are sent dense by the sparse codecs too: an envelope's signature alone is longer."""

_DENSE_FROM: Final = Fraction(1, 4)  # from this density on, a sparse codec also tries dense int4
_NEGATIVE_ZERO: Final = np.uint32(0x8000_0000)
_SLICE: Final = 1 << 16  # elements worked on at once where all are
_DENSE_HEAD: Final = struct.Struct("<BI")  # tag, n
_SPARSE_HEAD: Final = struct.Struct("<BIII")  # tag, n, k, bytes of indices


def codec_name(data: bytes | memoryview) -> str:
    """The name of the codec that a payload is in.

    Raises:
        CodecError: the payload is empty, or its tag unknown.
    """
    tag = memoryview(data).cast("B")[0] if len(data) else 0
    indices, values = tag >> 4, tag & 15
    for name, codec in CODECS.items():
        if (
            codec.values == values
            and codec.sparse == (indices in INDEX_CODES)
            and (codec.sparse or not indices)
        ):
            return name
    raise CodecError(f"unknown codec tag {tag:#04x}", reason="unknown-codec")


def encode(vector: Float32Array, spec: CodecSpec) -> tuple[bytes, Decoded]:
    """Write a vector.

    Args:
        vector: float32[n], finite.
        spec: how.

    Returns:
        The payload, at most `max_encoded_bytes(n, spec)` long, and exactly what `decode` makes of it.

    Raises:
        ValueError: the vector has another shape or dtype, is too long, or is not finite.
    """
    _check_vector(vector)
    n = len(vector)
    if not spec.sparse:
        return _encode_dense(vector, spec.codec.values)
    if 0 < n <= TINY:
        return _encode_dense(vector, CODECS["int8"].values)
    payload, decoded = _encode_sparse(vector, spec)
    if Fraction(spec.density) >= _DENSE_FROM:
        dense_payload, dense = _encode_dense(vector, CODECS["int4"].values)
        if len(dense_payload) <= len(payload):
            return dense_payload, dense
    return payload, decoded


def split(p: Float32Array, spec: CodecSpec) -> tuple[bytes, Decoded, Float32Array]:
    """Write what is worth sending of p = delta + old residual, and give what stays.

    Args:
        p: float32[n], finite.
        spec: how.

    Returns:
        The payload; what `decode` makes of it; the new residual, float32[n], with decoded + residual = p exactly.

    Raises:
        ValueError: as `encode`.
    """
    payload, decoded = encode(p, spec)
    residual = p.copy()
    as_bits = residual.view(np.uint32)  # integers, since a processor may be set to lose subnormals
    as_bits[as_bits == _NEGATIVE_ZERO] = 0
    match decoded:
        case Sparse(indices=indices, values=values):
            residual[indices] = _exact_difference(residual[indices], values)
        case Dense(values=values):
            for start in range(0, len(p), _SLICE):
                part = slice(start, start + _SLICE)
                residual[part] = _exact_difference(residual[part], values[part])
    return payload, decoded, residual


def decode(data: bytes | memoryview, n: int, *, max_kept: int | None = None) -> Decoded:
    """Read a payload, which may hold anything.

    Args:
        data: the whole payload.
        n: length of the vector that it must be for.
        max_kept: the most elements that a sparse payload may hold, where the codec agreed on says so.

    Returns:
        A sparse or dense vector of length n: finite, no subnormals, no -0, arrays read-only.

    Raises:
        CodecError: with reason `unknown-codec`, `wrong-size` (not a vector of n), `too-large`, `not-finite` or
            `malformed`; nothing else. Whatever the payload says, no more memory is taken than 16 bytes for each of
            the n and 56 for each element kept.
    """
    view = memoryview(data).cast("B")
    if not 0 <= n <= MAX_PARAMETERS:
        raise ValueError(f"n={n} is outside 0..{MAX_PARAMETERS}")
    if len(view) > max_encoded_bytes(n):
        raise CodecError(f"{len(view)} bytes for {n} parameters", reason="too-large")
    if len(view) < _DENSE_HEAD.size:
        raise CodecError("the payload ends within its head")
    tag, stated = _DENSE_HEAD.unpack_from(view)
    indices, values = tag >> 4, tag & 15
    if indices == 0 and values in DENSE_VALUES:
        _check_size(stated, n)
        return _decode_dense(view[_DENSE_HEAD.size :], n, DENSE_VALUES[values])
    if indices in INDEX_CODES and values in KEPT_VALUES:
        _check_size(stated, n)
        return _decode_sparse(view, n, n if max_kept is None else min(n, max_kept), (indices, values))
    raise CodecError(f"unknown codec tag {tag:#04x}", reason="unknown-codec")


def max_encoded_bytes(n: int, spec: CodecSpec | None = None) -> int:
    """The longest payload for a vector of n.

    Args:
        n: length of the vector.
        spec: the codec agreed on; without it, the bound over all codecs.
    """
    dense = {
        key: _DENSE_HEAD.size + body.FLAG_BYTES + code.body_bytes(n) for key, code in DENSE_VALUES.items()
    }
    if spec is not None and not spec.sparse:
        return dense[spec.codec.values]
    if 0 < n <= TINY:
        return max(dense.values()) if spec is None else dense[CODECS["int8"].values]
    if spec is None:
        index_bytes = max(code.max_bytes(n, n) for code in INDEX_CODES.values())
        values = max(code.body_bytes(n) for code in KEPT_VALUES.values())
        return max(_SPARSE_HEAD.size + index_bytes + body.FLAG_BYTES + values, *dense.values())
    k = spec.kept(n)
    index_bytes = min(code.max_bytes(n, k) for code in spec.index_codes().values() if code.baseline)
    return _SPARSE_HEAD.size + index_bytes + body.FLAG_BYTES + KEPT_VALUES[spec.codec.values].body_bytes(k)


def _exact_difference(before: Float32Array, sent: Float32Array) -> Float32Array:
    after = np.where(sent == 0, before, before - sent)
    assert np.array_equal(sent + after, before), "sent + residual must be p: see the docstring of this module"
    return after


def _encode_dense(vector: Float32Array, values: int) -> tuple[bytes, Dense]:
    coded, sent = DENSE_VALUES[values].quantise(vector)
    frozen(sent)
    return _DENSE_HEAD.pack(values, len(vector)) + body.wrap(coded), Dense(sent)


def _encode_sparse(vector: Float32Array, spec: CodecSpec) -> tuple[bytes, Sparse]:
    n, values = len(vector), spec.codec.values
    candidates = select(vector, spec.kept(n))
    kept, coded, sent = KEPT_VALUES[values].quantise(vector[candidates])
    indices = candidates[kept].astype(np.uint32)
    coder, section = smallest(indices, n, spec.index_codes())
    head = _SPARSE_HEAD.pack(coder << 4 | values, n, len(indices), len(section))
    frozen(indices)
    frozen(sent)
    return head + section + body.wrap(coded), Sparse(n, indices, sent)


def _decode_dense(section: memoryview, n: int, code: DenseValues) -> Dense:
    values = code.dequantise(body.unwrap(section, code.body_bytes(n)), n)
    frozen(values)
    return Dense(values)


def _decode_sparse(view: memoryview, n: int, max_kept: int, tag: tuple[int, int]) -> Sparse:
    index_code, code = INDEX_CODES[tag[0]], KEPT_VALUES[tag[1]]
    if len(view) < _SPARSE_HEAD.size:
        raise CodecError("the payload ends within its head")
    _, _, k, index_bytes = _SPARSE_HEAD.unpack_from(view)
    rest = view[_SPARSE_HEAD.size :]
    if k > max_kept:
        raise CodecError(
            f"{k} elements, at most {max_kept} may come", reason="malformed" if k > n else "too-large"
        )
    if index_bytes > len(rest):
        raise CodecError("the payload ends within its indices")
    indices = index_code.decode(rest[:index_bytes], n, k)
    values = code.dequantise(body.unwrap(rest[index_bytes:], code.body_bytes(k)), k)
    frozen(indices)
    frozen(values)
    return Sparse(n, indices, values)


def _check_vector(vector: Float32Array) -> None:
    if vector.ndim != 1 or vector.dtype != np.float32 or len(vector) > MAX_PARAMETERS:
        raise ValueError(
            f"expected float32[n], n <= {MAX_PARAMETERS}, got {vector.dtype}{list(vector.shape)}"
        )
    if not np.isfinite(vector).all():
        raise ValueError("the vector is not finite")


def _check_size(stated: int, n: int) -> None:
    if stated != n:
        raise CodecError(f"a vector of {stated}, expected {n}", reason="wrong-size")
