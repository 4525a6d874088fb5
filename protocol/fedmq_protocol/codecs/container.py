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

import io
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import BinaryIO, Final, TypeAlias

import numpy as np

from fedmq_protocol.codecs import dense, masked, sparse
from fedmq_protocol.codecs.budget import check_budget
from fedmq_protocol.codecs.decoded import Decoded, Dense, Float32Array, Sparse, frozen
from fedmq_protocol.codecs.dense import Coded
from fedmq_protocol.codecs.grid_model import Shapes
from fedmq_protocol.codecs.registry import CODECS, DENSE_VALUES, INDEX_CODES, KEPT_VALUES, MASK, CodecSpec
from fedmq_protocol.codecs.rounding import Stochastic
from fedmq_protocol.codecs.slices import Source, parts
from fedmq_protocol.errors import CodecError
from fedmq_protocol.limits import MAX_PARAMETERS

TINY: Final = 64
"""Vectors up to this long are sent dense by the sparse codecs too: an envelope's signature alone is longer."""

Sent: TypeAlias = Sparse | Coded
"""What was written, to be taken off what there was."""

_SIZES: Final = 64  # of models and their buffers, for which bounds are remembered
_DENSE_FROM: Final = Fraction(1, 4)  # from this density on, a sparse codec also tries dense int4
_NEGATIVE_ZERO: Final = np.uint32(0x8000_0000)


def codec_name(data: bytes | memoryview) -> str:
    """The name of the codec that a payload is in.

    Raises:
        CodecError: the payload is empty, or its tag unknown.
    """
    tag = memoryview(data).cast("B")[0] if len(data) else 0
    indices, values = tag >> 4, tag & 15
    for name, codec in CODECS.items():
        unmasked = INDEX_CODES if codec.sparse else (0,)
        if codec.values == values and indices in ((MASK,) if codec.masked else unmasked):
            return name
    raise CodecError(f"unknown codec tag {tag:#04x}", reason="unknown-codec")


def is_dense(data: bytes | memoryview) -> bool:
    """Whether a payload says that it holds every element; it may hold anything."""
    return len(data) > 0 and memoryview(data).cast("B")[0] in DENSE_VALUES


def encode_to(
    source: Source,
    spec: CodecSpec,
    out: BinaryIO,
    *,
    shapes: Shapes | None = None,
    rng: np.random.Generator | None = None,
) -> Sent:
    """Write a vector, slice by slice: nothing of its length is held in memory.

    Args:
        source: float32[n], finite: an array, or whatever can be read like one.
        spec: how.
        out: a file that can seek, or `io.BytesIO`; the payload goes to its end.
        shapes: of the tensors that make up the vector, in order: indices cost less if they are known, and the decoder
            must know them, too.
        rng: the stream of chance for stochastic rounding.

    Returns:
        What `decode` will make of it: a sparse vector, or a dense one that is made anew from `source`.

    Raises:
        ValueError: the vector has another shape or dtype, is too long, or is not finite; the shapes are not of
            this length; or chance is lacking.
    """
    _check_source(source)
    n, rounding = len(source), _rounding(spec, rng)
    if spec.codec.masked:
        payload, sent = masked.encode(source, spec, rounding)
        out.write(payload)
        return sent
    if not spec.sparse or 0 < n <= TINY:
        values = CODECS["int8"].values if spec.sparse else spec.codec.values
        check_budget(spec, dense.payload_bytes(values, n))
        coded = dense.measured(source, values, rounding)
        coded.write(out)
        return coded
    payload, sent = sparse.encode(source, spec, rounding, shapes)
    share = spec.share if spec.max_bytes is None else Fraction(sent.nnz, max(1, n))
    if share >= _DENSE_FROM:
        coded = dense.measured(source, CODECS["int4"].values, rounding)
        alternative = io.BytesIO()
        coded.write(alternative)
        if alternative.tell() <= len(payload):
            out.write(alternative.getbuffer())
            return coded
    out.write(payload)
    return sent


def encode(
    vector: Source,
    spec: CodecSpec,
    *,
    shapes: Shapes | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[bytes, Decoded]:
    """Write a vector.

    Args:
        vector: float32[n], finite.
        spec: how.
        shapes: as `encode_to`.
        rng: the stream of chance for stochastic rounding.

    Returns:
        The payload, at most `max_encoded_bytes(n, spec)` long, and exactly what `decode` makes of it.

    Raises:
        ValueError: as `encode_to`.
    """
    out = io.BytesIO()
    sent = encode_to(vector, spec, out, shapes=shapes, rng=rng)
    return out.getvalue(), _as_decoded(sent, len(vector))


def split(
    p: Float32Array,
    spec: CodecSpec,
    *,
    shapes: Shapes | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[bytes, Decoded, Float32Array]:
    """Write what is worth sending of p = delta + old residual, and give what stays.

    Args:
        p: float32[n], finite.
        spec: how.
        shapes: as `encode_to`.
        rng: the stream of chance for stochastic rounding.

    Returns:
        The payload; what `decode` makes of it; the new residual, float32[n], with decoded + residual = p exactly.

    Raises:
        ValueError: as `encode_to`.
    """
    out = io.BytesIO()
    sent = encode_to(p, spec, out, shapes=shapes, rng=rng)
    decoded, residual = _as_decoded(sent, len(p)), p.copy()
    leave(residual, sent)
    return out.getvalue(), decoded, residual


def split_to(
    p: Float32Array,
    spec: CodecSpec,
    out: BinaryIO,
    *,
    shapes: Shapes | None = None,
    rng: np.random.Generator | None = None,
) -> None:
    """Write what is worth sending of p, and let p become what stays: `split` in place.

    Args:
        p: float32[n], finite, writable; may be an `np.memmap`. After an error it is as it was.
        spec: how.
        out: as `encode_to`.
        shapes: as `encode_to`.
        rng: the stream of chance for stochastic rounding.

    Raises:
        ValueError: as `encode_to`.
    """
    p = np.asarray(p)
    leave(p, encode_to(p, spec, out, shapes=shapes, rng=rng))


def leave(p: Float32Array, sent: Sent) -> None:
    """Take what was sent off the p that it was sent of, in place."""
    for part in parts(len(p)):
        as_bits = p[part].view(np.uint32)  # integers, since a processor may be set to lose subnormals
        as_bits[as_bits == _NEGATIVE_ZERO] = 0
    match sent:
        case Sparse(indices=indices, values=values):
            p[indices] = _exact_difference(p[indices], values)
        case Coded():
            for part, values in sent.sent():
                p[part] = _exact_difference(p[part], values)


def replace(vector: Float32Array, name: str) -> None:
    """Let a vector become what a dense codec makes of it, in place, without a payload in between.

    Args:
        vector: float32[n], finite, writable; may be an `np.memmap`.
        name: of a dense codec.

    Raises:
        ValueError: as `encode_to`, or the codec is not dense.
    """
    spec = CodecSpec(name)
    if spec.sparse:
        raise ValueError(f"{name} is not dense")
    _check_source(vector)
    for part, values in dense.measured(np.asarray(vector), spec.codec.values).sent():
        vector[part] = values


def decode(
    data: bytes | memoryview, n: int, *, shapes: Shapes | None = None, max_kept: int | None = None
) -> Decoded:
    """Read a payload, which may hold anything.

    Args:
        data: the whole payload.
        n: length of the vector that it must be for.
        shapes: of the tensors that make up the vector, as the encoder knew them.
        max_kept: the most elements that a payload may hold, where the codec agreed on says so: n for a dense codec. A
            dense payload is taken in a sparse one's place where `encode` would make it.

    Returns:
        A sparse or dense vector of length n: finite, no subnormals, no -0, arrays read-only.

    Raises:
        CodecError: with reason `unknown-codec`, `wrong-size` (not a vector of n), `too-large`, `not-finite` or
            `malformed`; nothing else. Whatever the payload says, no more memory is taken than 16 bytes for each of
            the n, 56 for each element kept, and 16 MiB.
    """
    view, most = memoryview(data).cast("B"), n if max_kept is None else min(n, max_kept)
    tag = _checked_head(view, n)
    if tag not in DENSE_VALUES:
        k = sparse.kept_in(view, n, most)
        return masked.decode(view, n, k) if _is_masked(tag) else sparse.decode(view, n, k, shapes)
    if not _may_be_dense(n, most):
        raise CodecError(f"all of {n} elements, at most {most} may come", reason="too-large")
    values = np.empty(n, np.float32)
    for part, decoded in dense.decoded(view[dense.HEAD.size :], n, tag):
        values[part] = decoded
    frozen(values)
    return Dense(values)


def decoded_slices(data: bytes | memoryview, n: int) -> Iterator[tuple[slice, Float32Array]]:
    """Read a dense payload slice by slice; it is sound only once the last slice has come.

    Args:
        data: the whole payload; may be a view of a file.
        n: length of the vector that it must be for.

    Returns:
        Where each slice lies, and its values. All slices together are what `decode` gives.

    Raises:
        CodecError: as `decode`, at once or in place of a slice; also if the payload is sparse. No more memory is taken
            than a sixteenth of the vector's and 16 MiB.
    """
    view = memoryview(data).cast("B")
    tag = _checked_head(view, n)
    if tag not in DENSE_VALUES:
        raise CodecError(f"a payload with tag {tag:#04x}, where a dense one belongs")
    return dense.decoded(view[dense.HEAD.size :], n, tag)


def decode_into(data: bytes | memoryview, out: Float32Array) -> None:
    """Read a dense payload into a given array, slice by slice.

    Args:
        data: as `decoded_slices`.
        out: float32[n], overwritten; may be an `np.memmap`. After an error it holds rubbish.

    Raises:
        CodecError: as `decoded_slices`.
    """
    for part, values in decoded_slices(data, len(out)):
        out[part] = values


def max_encoded_bytes(n: int, spec: CodecSpec | None = None) -> int:
    """The longest payload that `encode` writes for a vector of n.

    Args:
        n: length of the vector.
        spec: the codec agreed on; without it, the bound over all codecs.
    """
    if spec is None:
        return max_accepted_bytes(n, n)
    if not spec.sparse:
        return dense.payload_bytes(spec.codec.values, n)
    if spec.codec.masked:
        longest = masked.payload_bytes(spec.codec.values, spec.kept(n))
    elif 0 < n <= TINY:
        return dense.payload_bytes(CODECS["int8"].values, n)
    else:
        longest = sparse.longest(n, spec)
    return longest if spec.max_bytes is None else min(longest, spec.max_bytes)


def max_accepted_bytes(n: int, max_kept: int) -> int:
    """The longest payload that `decode` looks at.

    Args:
        n: length of the vector.
        max_kept: the most elements that it may hold; n for a dense codec.
    """
    return max(_longest_unmasked(n, max_kept), masked.longest(max_kept))


@lru_cache(maxsize=_SIZES)
def _longest_unmasked(n: int, max_kept: int) -> int:
    longest = [dense.payload_bytes(key, n) for key in DENSE_VALUES] if _may_be_dense(n, max_kept) else []
    if not 0 < n <= TINY:
        longest.append(sparse.longest_of_all(n, max_kept))
    return max(longest)


def _is_masked(tag: int) -> bool:
    return tag >> 4 == MASK and tag & 15 in DENSE_VALUES


def _may_be_dense(n: int, max_kept: int) -> bool:
    return n <= TINY or max_kept >= _DENSE_FROM * n


def _exact_difference(before: Float32Array, sent: Float32Array) -> Float32Array:
    after = np.where(sent == 0, before, before - sent)
    assert np.array_equal(sent + after, before), "sent + residual must be p: see the docstring of this module"
    return after


def _as_decoded(sent: Sent, n: int) -> Decoded:
    if isinstance(sent, Sparse):
        return sent
    values = np.empty(n, np.float32)
    for part, slice_of_values in sent.sent():
        values[part] = slice_of_values
    frozen(values)
    return Dense(values)


def _checked_head(view: memoryview, n: int) -> int:
    """The tag of a payload that is not too long, of a known codec, and for a vector of n."""
    if not 0 <= n <= MAX_PARAMETERS:
        raise ValueError(f"n={n} is outside 0..{MAX_PARAMETERS}")
    longest = masked.longest(n) if len(view) and _is_masked(view[0]) else _longest_unmasked(n, n)
    if len(view) > longest:
        raise CodecError(f"{len(view)} bytes for {n} parameters", reason="too-large")
    if len(view) < dense.HEAD.size:
        raise CodecError("the payload ends within its head")
    tag, stated = dense.HEAD.unpack_from(view)
    is_sparse = tag >> 4 in INDEX_CODES and tag & 15 in KEPT_VALUES
    if tag not in DENSE_VALUES and not is_sparse and not _is_masked(tag):
        raise CodecError(f"unknown codec tag {tag:#04x}", reason="unknown-codec")
    if stated != n:
        raise CodecError(f"a vector of {stated}, expected {n}", reason="wrong-size")
    return int(tag)


def _check_source(source: Source) -> None:
    if isinstance(source, np.ndarray) and (source.ndim != 1 or source.dtype != np.float32):
        raise ValueError(f"expected float32[n], got {source.dtype}{list(source.shape)}")
    if len(source) > MAX_PARAMETERS:
        raise ValueError(f"expected float32[n], n <= {MAX_PARAMETERS}, got {len(source)}")


def _rounding(spec: CodecSpec, rng: np.random.Generator | None) -> Stochastic | None:
    if spec.rounding == "nearest":
        return None
    if rng is None:
        raise ValueError("stochastic rounding needs a stream of chance")
    return Stochastic(rng)
