"""A start from a seed: the first weights of a run as a recipe of a few bytes, which everyone cooks to the same bits.

What is random at the beginning of a training need not travel. A recipe names a seed and, segment by segment, how many
weights there are and of what kind:

- `constant`: all the same;
- `uniform`: evenly in (-b, b), as layers of PyTorch begin;
- `normal`: with mean 0 and a standard deviation s: the sum of eight even bytes (an Irwin-Hall distribution; its
  kurtosis is 2.85 where a normal one has 3, and nothing lies beyond 4.9 s).

Values are an integer below 2**16 times a scale of eight significant bits, so each product is exact in float32: no
machine can round it differently, and no logarithm or cosine is asked of anybody. Their precision, 1/256 for b or s and
2**-15 of b for a value, is far below what the drawing of weights means.

    payload = tag, one byte, 0x0f; n, four bytes; rebase, one byte, the tag of a dense codec; seed, eight bytes;
              then 9 bytes a segment: count, four bytes; kind, one byte; value, a float32

It stands in a run's first snapshot alone: in an update it would let a few bytes cost as much as a model.

Segment j draws from the stream of part j (`philox`): `uniform` weight i takes the i-th two bytes h, little-endian, as
(2 h - 65535) scale; `normal` weight i takes the i-th eight bytes and their sum t as (t - 1020) scale.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Final, Literal

import numpy as np

from fedmq_protocol.codecs import philox, scale
from fedmq_protocol.codecs.decoded import Float32Array, flushed
from fedmq_protocol.errors import CodecError
from fedmq_protocol.limits import MAX_TENSORS

Kind = Literal["constant", "uniform", "normal"]

KINDS: Final[tuple[Kind, ...]] = ("constant", "uniform", "normal")
"""In the order of their numbers on the wire."""

NAME: Final = "seeded"
TAG: Final = 0x0F
MAX_SCALE: Final = 2.0**96

_EVEN: Final = 65535  # 2 h - 65535 lies evenly in -65535..65535
_CENTRE: Final = 8 * 255 // 2  # of the sum of eight bytes
_SPREAD: Final = sqrt(8 * (256**2 - 1) / 12)  # its standard deviation, 209.02
_HEAD: Final = struct.Struct("<BIBQ")  # tag, n, rebase, seed
_SEGMENT: Final = struct.Struct("<IBf")  # count, kind, value
_SLICE: Final = 1 << 16  # weights that are made at once
_EIGHT_BIT_MASK: Final = np.uint32(0xFFFF)
_PAIRS: Final = np.uint64(0x00FF_00FF_00FF_00FF)
_SUM_OF_LANES: Final = np.uint64(0x0001_0001_0001_0001)


@dataclass(frozen=True)
class Segment:
    """Weights of one kind, one after another in the flat vector.

    Attributes:
        count: how many, at least 1.
        kind: of what kind.
        value: the constant, or the scale that integers are multiplied by.
    """

    count: int
    kind: Kind
    value: float

    @classmethod
    def constant(cls, count: int, value: float) -> Segment:
        """All of them `value`, as float32; subnormals and -0 become +0."""
        return cls(count, "constant", float(flushed(np.array([value], np.float32))[0]))

    @classmethod
    def uniform(cls, count: int, bound: float) -> Segment:
        """Evenly between -bound and bound, up to the rounding of the scale to eight bits."""
        return cls(count, "uniform", _rounded(bound / _EVEN))

    @classmethod
    def normal(cls, count: int, std: float) -> Segment:
        """With standard deviation `std`, up to the rounding of the scale to eight bits."""
        return cls(count, "normal", _rounded(std / _SPREAD))


@dataclass(frozen=True)
class Recipe:
    """What a run's first weights are made of.

    Attributes:
        seed: 0..2**64 - 1.
        segments: in the order of the flat vector, at most `MAX_TENSORS`.
        rebase: tag of the dense codec that snapshots of later versions, and with them rebases, are in.
    """

    seed: int
    segments: tuple[Segment, ...]
    rebase: int

    @property
    def n(self) -> int:
        """How many weights."""
        return sum(segment.count for segment in self.segments)


def encode(recipe: Recipe) -> bytes:
    """The payload.

    Raises:
        ValueError: a segment is empty or out of range, or there are too many.
    """
    payload = _HEAD.pack(TAG, recipe.n, recipe.rebase, recipe.seed) + b"".join(
        _SEGMENT.pack(segment.count, KINDS.index(segment.kind), segment.value) for segment in recipe.segments
    )
    try:
        read = decode(payload, recipe.n)
    except CodecError as error:
        raise ValueError(f"not a recipe: {error}") from None
    if read != recipe:
        raise ValueError("a value of the recipe is no float32")
    return payload


def is_seeded(payload: bytes | memoryview) -> bool:
    """Whether a payload says that it is a recipe."""
    return len(payload) > 0 and memoryview(payload).cast("B")[0] == TAG


def decode(payload: bytes | memoryview, n: int) -> Recipe:
    """Read a recipe; nothing is generated.

    Args:
        payload: what `encode` wrote, and nothing after it.
        n: how many weights it must be for.

    Raises:
        CodecError: it is malformed, or for another number of weights.
    """
    view = memoryview(payload).cast("B")
    length = len(view) - _HEAD.size
    if length < 0 or length % _SEGMENT.size or length > MAX_TENSORS * _SEGMENT.size:
        raise CodecError(f"a recipe of {len(view)} bytes")
    tag, stated, rebase, seed = _HEAD.unpack_from(view)
    if tag != TAG:
        raise CodecError(f"tag {tag:#04x} instead of a recipe's", reason="unknown-codec")
    if stated != n:
        raise CodecError(f"a recipe for {stated} weights, expected {n}", reason="wrong-size")
    segments = tuple(_segments(view[_HEAD.size :]))
    recipe = Recipe(seed, segments, rebase)
    if recipe.n != n:
        raise CodecError(f"a recipe for {recipe.n} weights that promises {n}")
    return recipe


def rebase_tag(payload: bytes | memoryview) -> int:
    """The tag of the codec that later snapshots are in.

    Raises:
        CodecError: the payload ends before it.
    """
    if len(payload) < _HEAD.size:
        raise CodecError(f"a recipe of {len(payload)} bytes")
    _, _, rebase, _ = _HEAD.unpack_from(payload)
    return int(rebase)


def generate(recipe: Recipe, out: Float32Array) -> None:
    """Write the weights, slice by slice.

    Args:
        recipe: from `decode`, or from the methods of `Segment`.
        out: float32[recipe.n], overwritten.
    """
    if out.shape != (recipe.n,) or out.dtype != np.float32:
        raise ValueError(f"expected float32[{recipe.n}], got {out.dtype}{list(out.shape)}")
    start = 0
    for part, segment in enumerate(recipe.segments):
        target = out[start : start + segment.count]
        start += segment.count
        if segment.kind == "constant":
            target[:] = np.float32(segment.value)
            continue
        for first in range(0, segment.count, _SLICE):
            piece = target[first : first + _SLICE]
            integers = _drawn(recipe.seed, part, segment.kind, first, len(piece))
            np.multiply(integers, np.float32(segment.value), out=piece)


def _drawn(seed: int, part: int, kind: Kind, first: int, count: int) -> Float32Array:
    """Weights `first`, ... of a segment before they are scaled: integers as float32[count]."""
    size = 2 if kind == "uniform" else 8
    each = philox.BLOCK_BYTES // size  # `first` is a multiple of it
    blocks = philox.words(seed, philox.WEIGHTS, part, first // each, -(-count // each))
    drawn = philox.block_bytes(blocks)
    if kind == "uniform":
        return (2 * drawn.view("<u2")[:count].astype(np.int32) - _EVEN).astype(np.float32)
    lanes = drawn.view("<u8")[:count].astype(np.uint64)
    lanes = (lanes & _PAIRS) + ((lanes >> np.uint64(8)) & _PAIRS)  # four sums of two bytes, 16 bits each
    sums = (lanes * _SUM_OF_LANES) >> np.uint64(48)  # the top lane of the product is the sum of all four
    return (sums.astype(np.int32) - _CENTRE).astype(np.float32)


def _segments(data: memoryview) -> Iterator[Segment]:
    for count, kind, value in _SEGMENT.iter_unpack(data):
        if count == 0 or kind >= len(KINDS):
            raise CodecError(f"a recipe with {count} weights of kind {kind}")
        if not isfinite(value):
            raise CodecError("a recipe with a value that is not finite", reason="not-finite")
        bits = np.array([value], np.float32)
        if KINDS[kind] == "constant":
            if flushed(bits).view(np.uint32)[0] != bits.view(np.uint32)[0]:
                raise CodecError("a recipe with a subnormal constant, or -0")
        elif bits.view(np.uint32)[0] & _EIGHT_BIT_MASK or not scale.MIN_SCALE <= value <= MAX_SCALE:
            raise CodecError("a recipe with a scale that is out of range")
        yield Segment(count, KINDS[kind], value)


def _rounded(value: float) -> float:
    short = float(scale.rounded(np.array([value], np.float32))[0])
    if not scale.MIN_SCALE <= short <= MAX_SCALE:
        raise ValueError(f"a scale of {value:g} is out of range")
    return short
