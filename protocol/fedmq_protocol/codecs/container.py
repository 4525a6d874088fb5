"""An update or a model as bytes, and back: what to send, how to write it, and what stays behind.

A payload is one tag byte, whose upper half says how indices are coded (0: none, the vector is dense) and whose lower
half how values are; then counts; then the coded indices and values. `docs/protocol-codecs.md` has the layout to the
bit. Adding a coder takes an entry in a table here.

**Error feedback loses nothing.** For p = delta + old residual, `split` gives sent and residual with
sent + residual = p, where the sum may be taken in real numbers or in float32: both are exact. What is not sent stays
in the residual as it is. What is sent was quantised to a value from which float32 subtraction is exact; each value
code proves it for its own levels (`blockwise`, `log4`, `sign1`). If p - q is a float32 r, then q + r = p needs no
rounding either. One bit is not kept: -0 is read as +0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import body, float32, linear8, log4, rice, sign1
from fedmq_protocol.codecs.blockwise import INT4, INT8
from fedmq_protocol.codecs.decoded import Decoded, Dense, Float32Array, Sparse, UInt32Array, frozen
from fedmq_protocol.codecs.topk import select
from fedmq_protocol.errors import CodecError
from fedmq_protocol.limits import MAX_PARAMETERS


@dataclass(frozen=True)
class DenseValues:
    """How every value of a vector is written.

    Attributes:
        body_bytes: length of the body for so many values.
        quantise: float32[n] -> the body, and the values as they will be decoded.
        dequantise: the body and n -> float32[n]; raises CodecError.
    """

    body_bytes: Callable[[int], int]
    quantise: Callable[[Float32Array], tuple[bytes, Float32Array]]
    dequantise: Callable[[memoryview, int], Float32Array]


@dataclass(frozen=True)
class KeptValues:
    """How the kept values of a sparse vector are written. The code may find some not worth sending.

    Attributes:
        body_bytes: length of the body for so many values.
        quantise: float32[k] -> which are sent, bool[k]; the body for those; those as they will be decoded.
        dequantise: the body and the count -> float32[count]; raises CodecError.
    """

    body_bytes: Callable[[int], int]
    quantise: Callable[[Float32Array], tuple[NDArray[np.bool_], bytes, Float32Array]]
    dequantise: Callable[[memoryview, int], Float32Array]


@dataclass(frozen=True)
class IndexCode:
    """How sorted indices are written.

    Attributes:
        max_bytes: the most that k of n indices take.
        encode: int[k] and n -> the section.
        decode: the section, n and k -> uint32[k], strictly increasing below n; raises CodecError.
    """

    max_bytes: Callable[[int, int], int]
    encode: Callable[[NDArray[np.integer], int], bytes]
    decode: Callable[[memoryview, int, int], UInt32Array]


_RICE: Final = 1
_FLOAT32, _INT8, _INT4, _LOG4, _SIGN, _LINEAR8 = range(1, 7)

INDEX_CODES: Final[dict[int, IndexCode]] = {_RICE: IndexCode(rice.max_bytes, rice.encode, rice.decode)}
DENSE_VALUES: Final[dict[int, DenseValues]] = {
    _FLOAT32: DenseValues(float32.body_bytes, float32.quantise, float32.dequantise),
    _INT8: DenseValues(INT8.body_bytes, INT8.quantise, INT8.dequantise),
    _INT4: DenseValues(INT4.body_bytes, INT4.quantise, INT4.dequantise),
}
KEPT_VALUES: Final[dict[int, KeptValues]] = {
    _LOG4: KeptValues(log4.body_bytes, log4.quantise, log4.dequantise),
    _SIGN: KeptValues(sign1.body_bytes, sign1.quantise, sign1.dequantise),
    _LINEAR8: KeptValues(linear8.body_bytes, linear8.quantise, linear8.dequantise),
}


@dataclass(frozen=True)
class Codec:
    """What a name in the settings and in a birth certificate stands for.

    Attributes:
        indices: the key in `INDEX_CODES`, or 0 for a dense codec.
        values: the key in `KEPT_VALUES`, or in `DENSE_VALUES` for a dense codec.
    """

    indices: int
    values: int

    @property
    def tag(self) -> int:
        """The first byte of a payload."""
        return self.indices << 4 | self.values


CODECS: Final[dict[str, Codec]] = {
    "topk-log4": Codec(_RICE, _LOG4),
    "topk-sign": Codec(_RICE, _SIGN),
    "topk-int8": Codec(_RICE, _LINEAR8),
    "int8": Codec(0, _INT8),
    "int4": Codec(0, _INT4),
    "float32": Codec(0, _FLOAT32),
}
"""Who names one of these in its birth certificate decodes them all: the sparse ones may fall back to dense."""

TINY: Final = 64
"""Vectors up to this long are sent dense by the sparse codecs too: an envelope's signature alone is longer."""

_DENSE_FROM: Final = Fraction(1, 4)  # from this density on, a sparse codec also tries dense int4
_NEGATIVE_ZERO: Final = np.uint32(0x8000_0000)
_SLICE: Final = 1 << 16  # elements worked on at once where all are
_DENSE_HEAD: Final = struct.Struct("<BI")  # tag, n
_SPARSE_HEAD: Final = struct.Struct("<BIII")  # tag, n, k, bytes of indices


def names() -> tuple[str, ...]:
    """The codecs that this implementation speaks, for the birth certificate."""
    return tuple(CODECS)


@dataclass(frozen=True)
class CodecSpec:
    """A codec and its setting, as a run announces it.

    Attributes:
        name: a key of `CODECS`.
        density: share of the elements that a sparse codec keeps, above 0 and at most 1; dense ones ignore it.

    Raises:
        CodecError: the name is unknown or the density is out of range; both may come from outside.
    """

    name: str
    density: float = 0.01

    def __post_init__(self) -> None:
        if self.name not in CODECS:
            known = ", ".join(CODECS)
            raise CodecError(f"unknown codec {self.name[:64]!r}; known are {known}", reason="unknown-codec")
        if not (isfinite(self.density) and 0 < self.density <= 1):
            raise CodecError(f"density {self.density} is not above 0 and at most 1")

    @property
    def sparse(self) -> bool:
        """Whether the codec keeps a share of the elements."""
        return CODECS[self.name].indices != 0

    def kept(self, n: int) -> int:
        """How many of n elements are kept: max(1, ceil(density n)), with the density as it is written in decimal."""
        if not self.sparse or n == 0:
            return n
        return min(n, max(1, ceil(Fraction(repr(self.density)) * n)))


def codec_name(data: bytes | memoryview) -> str:
    """The name of the codec that a payload is in.

    Raises:
        CodecError: the payload is empty, or its tag unknown.
    """
    tag = memoryview(data).cast("B")[0] if len(data) else 0
    for name, codec in CODECS.items():
        if codec.tag == tag:
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
    n, codec = len(vector), CODECS[spec.name]
    if codec.indices == 0:
        return _encode_dense(vector, codec.values)
    if 0 < n <= TINY:
        return _encode_dense(vector, _INT8)
    payload, decoded = _encode_sparse(vector, spec.kept(n), codec)
    if Fraction(spec.density) >= _DENSE_FROM:
        dense_payload, dense = _encode_dense(vector, _INT4)
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
    if spec is None:
        return max(max_encoded_bytes(n, CodecSpec(name, density=1.0)) for name in CODECS)
    codec = CODECS[spec.name]
    if codec.indices == 0:
        return _DENSE_HEAD.size + body.FLAG_BYTES + DENSE_VALUES[codec.values].body_bytes(n)
    if 0 < n <= TINY:
        return max_encoded_bytes(n, CodecSpec("int8"))
    k = spec.kept(n)
    index_bytes = INDEX_CODES[codec.indices].max_bytes(n, k)
    return _SPARSE_HEAD.size + index_bytes + body.FLAG_BYTES + KEPT_VALUES[codec.values].body_bytes(k)


def _exact_difference(before: Float32Array, sent: Float32Array) -> Float32Array:
    after = np.where(sent == 0, before, before - sent)
    assert np.array_equal(sent + after, before), "sent + residual must be p: see the docstring of this module"
    return after


def _encode_dense(vector: Float32Array, values: int) -> tuple[bytes, Dense]:
    coded, sent = DENSE_VALUES[values].quantise(vector)
    frozen(sent)
    return _DENSE_HEAD.pack(values, len(vector)) + body.wrap(coded), Dense(sent)


def _encode_sparse(vector: Float32Array, k: int, codec: Codec) -> tuple[bytes, Sparse]:
    n = len(vector)
    candidates = select(vector, k)
    kept, coded, sent = KEPT_VALUES[codec.values].quantise(vector[candidates])
    indices = candidates[kept].astype(np.uint32)
    section = INDEX_CODES[codec.indices].encode(indices, n)
    head = _SPARSE_HEAD.pack(codec.tag, n, len(indices), len(section))
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
