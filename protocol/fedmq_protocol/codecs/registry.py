"""What there is to choose from: value codes, index coders, and the codecs that join them, each found by name or number.

A payload's tag byte joins an index coder (its upper half; 0: none, the vector is dense) and a value code (its lower
half). Adding one takes an entry in a table here.

Names carry a version after a slash; without one they mean version 1, for ever. A device lists what it speaks in its
birth certificate: `names()`. What is marked `baseline` everybody has; other coders are for updates alone, where
coordinator and device both have them, and other codecs for runs whose devices all do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isfinite
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import grid, linear8, log4, rice, seeded, sign1, signs
from fedmq_protocol.codecs.blockwise import INT4, INT8
from fedmq_protocol.codecs.decoded import Float32Array, UInt32Array
from fedmq_protocol.codecs.float32 import FLOAT32
from fedmq_protocol.codecs.grid_model import Shapes
from fedmq_protocol.codecs.keptblocks import KEPT4, KEPT8
from fedmq_protocol.codecs.rounding import Stochastic
from fedmq_protocol.codecs.shares import counts
from fedmq_protocol.codecs.signs import Symbols
from fedmq_protocol.codecs.slices import Source
from fedmq_protocol.errors import CodecError
from fedmq_protocol.limits import DEFAULT_CODE_MS


class DenseValues(Protocol):
    """How every value of a vector is written: scales of the whole (maybe none), then the values slice by slice."""

    def head_bytes(self, count: int) -> int:
        """Length of the scales for so many values."""
        ...

    def section_bytes(self, count: int) -> int:
        """Length of so many values; those of slices add up to that of the whole."""
        ...

    def measure(self, source: Source) -> Float32Array:
        """Finite float32[n] -> the scales."""
        ...

    def write_head(self, scales: Float32Array) -> bytes:
        """The scales as bytes."""
        ...

    def read_head(self, head: memoryview) -> Float32Array:
        """The scales back; raises CodecError."""
        ...

    def write(
        self, x: Float32Array, start: int, scales: Float32Array, rounding: Stochastic | None
    ) -> tuple[bytes, Float32Array]:
        """A slice, float32[count], that begins at `start` -> its bytes, and its values as they will be decoded."""
        ...

    def read(self, section: memoryview, start: int, count: int, scales: Float32Array) -> Float32Array:
        """The slice back; raises CodecError."""
        ...


@dataclass(frozen=True)
class KeptValues:
    """How the kept values of a sparse vector are written. The code may find some not worth sending.

    Attributes:
        body_bytes: length of the body for so many values.
        quantise: float32[k] and chance -> which are sent, bool[k]; the body for those; those as they will be decoded.
        dequantise: the body and the count -> float32[count]; raises CodecError.
        rounds: whether it has a use for chance.
        symbols: how the body falls into signs and levels, if it does.
    """

    body_bytes: Callable[[int], int]
    quantise: Callable[[Float32Array, Stochastic | None], tuple[NDArray[np.bool_], bytes, Float32Array]]
    dequantise: Callable[[memoryview, int], Float32Array]
    rounds: bool = False
    symbols: Symbols | None = None


Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class IndexCode:
    """How sorted indices are written.

    Attributes:
        name: with its version.
        max_bytes: the most that k of n indices take.
        encode: int[k], n and the tensors' shapes -> the section.
        decode: the section, n, k and the shapes -> uint32[k], strictly increasing below n; raises CodecError.
        cost_ns: n, k and the shapes -> what the slower of encoding and decoding takes, roughly; the encoder adds these
            up to keep within its time, since a clock would make payloads depend on the machine. Infinite where the
            coder cannot be used.
        baseline: whether everybody has it; such coders alone write what goes to devices.
        estimate: int[k], n and the shapes -> about how many bytes `encode` would write, in a small part of its time;
            None where only encoding tells.
    """

    name: str
    max_bytes: Callable[[int, int], int]
    encode: Callable[[NDArray[np.integer], int, Shapes | None], bytes]
    decode: Callable[[memoryview, int, int, Shapes | None], UInt32Array]
    cost_ns: Callable[[int, int, Shapes | None], float]
    baseline: bool = False
    estimate: Callable[[NDArray[np.integer], int, Shapes | None], float] | None = None


_RICE, _GRID = 1, 2
_FLOAT32, _INT8, _INT4, _LOG4, _SIGN, _LINEAR8, _BLOCK8, _BLOCK4 = range(1, 9)

INDEX_CODES: Final[dict[int, IndexCode]] = {
    _RICE: IndexCode(
        "rice/1",
        rice.max_bytes,
        lambda indices, n, _: rice.encode(indices, n),
        lambda section, n, k, _: rice.decode(section, n, k),
        lambda _n, k, _: 100.0 * k,
        baseline=True,
    ),
    _GRID: IndexCode("grid/1", grid.max_bytes, grid.encode, grid.decode, grid.cost_ns, baseline=True),
}
"""By the upper half of the tag. The first serves whenever no other one is smaller."""

DENSE_VALUES: Final[dict[int, DenseValues]] = {_FLOAT32: FLOAT32, _INT8: INT8, _INT4: INT4}
MASK: Final = 15
"""The upper half of the tag of a payload whose indices a seed stands for."""

KEPT_VALUES: Final[dict[int, KeptValues]] = {
    _LOG4: KeptValues(log4.body_bytes, lambda x, _: log4.quantise(x), log4.dequantise, symbols=log4.SYMBOLS),
    _SIGN: KeptValues(
        sign1.body_bytes, lambda x, _: sign1.quantise(x), sign1.dequantise, symbols=sign1.SYMBOLS
    ),
    _LINEAR8: KeptValues(
        linear8.body_bytes, linear8.quantise, linear8.dequantise, rounds=True, symbols=linear8.SYMBOLS
    ),
    _BLOCK8: KeptValues(KEPT8.body_bytes, KEPT8.quantise, KEPT8.dequantise, rounds=True),
    _BLOCK4: KeptValues(KEPT4.body_bytes, KEPT4.quantise, KEPT4.dequantise, rounds=True),
}


@dataclass(frozen=True)
class Codec:
    """What a name in the settings and in a birth certificate stands for.

    Attributes:
        sparse: whether a share of the elements is kept.
        values: the key in `KEPT_VALUES`, or in `DENSE_VALUES` for a dense codec or a masked one.
        baseline: whether everybody has it.
        masked: whether a seed says which are kept.
    """

    sparse: bool
    values: int
    baseline: bool = True
    masked: bool = False

    @property
    def rounds(self) -> bool:
        """Whether it has a use for chance."""
        if self.sparse and not self.masked:
            return KEPT_VALUES[self.values].rounds
        return self.values != _FLOAT32


CODECS: Final[dict[str, Codec]] = {
    "topk-log4": Codec(sparse=True, values=_LOG4),
    "topk-sign": Codec(sparse=True, values=_SIGN),
    "topk-int8": Codec(sparse=True, values=_LINEAR8),
    "topk-block8": Codec(sparse=True, values=_BLOCK8, baseline=False),
    "topk-block4": Codec(sparse=True, values=_BLOCK4, baseline=False),
    "randk-int8": Codec(sparse=True, values=_INT8, baseline=False, masked=True),
    "randk-int4": Codec(sparse=True, values=_INT4, baseline=False, masked=True),
    "randk-float32": Codec(sparse=True, values=_FLOAT32, baseline=False, masked=True),
    "int8": Codec(sparse=False, values=_INT8),
    "int4": Codec(sparse=False, values=_INT4),
    "float32": Codec(sparse=False, values=_FLOAT32),
}
"""By name without a version, which is version 1; another version is another entry, `name/2`."""

_FIRST_VERSION: Final = "/1"


@dataclass(frozen=True)
class CodecSpec:
    """A codec and its settings, as a run announces them.

    Attributes:
        name: a key of `CODECS`, or that with `/1`.
        density: share of the elements that a sparse codec keeps, above 0 and at most 1; dense ones ignore it.
        coders: names of the coders that may be used besides the baseline; those that are not had here are ignored.
        rounding: of the linear codes; `stochastic` needs a stream of chance to encode with.
        code_ms: about how long sender and receiver may each take to code indices better than with Rice codes; and, if
            time is left for it, values better than with zstd.
        tensors: lengths of the tensors that the vector is made of, if the share is to be kept of each by itself.
        max_bytes: if the density follows from it: the payload may not be longer.
        seed: what a masked codec's indices are drawn from; only needed to encode.

    Raises:
        CodecError: the name is unknown, the density or the budget is out of range, or the codec does not round by
            chance, or has no use for a budget; all may come from outside.
    """

    name: str
    density: float = 0.01
    coders: tuple[str, ...] = ()
    rounding: Rounding = "nearest"
    code_ms: float = DEFAULT_CODE_MS
    tensors: tuple[int, ...] = ()
    max_bytes: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if unversioned(self.name) not in CODECS:
            known = ", ".join(CODECS)
            raise CodecError(f"unknown codec {self.name[:64]!r}; known are {known}", reason="unknown-codec")
        if not (isfinite(self.density) and 0 < self.density <= 1):
            raise CodecError(f"density {self.density} is not above 0 and at most 1")
        if self.rounding == "stochastic" and not self.codec.rounds:
            rounding = ", ".join(name for name, codec in CODECS.items() if codec.rounds)
            raise CodecError(f"{self.name} does not round by chance; those that do are {rounding}")
        if self.max_bytes is not None and not self.sparse:
            raise CodecError(f"{self.name} sends every element: a budget of bytes needs a sparse codec")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise CodecError(f"a budget of {self.max_bytes} bytes")

    @property
    def codec(self) -> Codec:
        """What the name stands for."""
        return CODECS[unversioned(self.name)]

    @property
    def sparse(self) -> bool:
        """Whether the codec keeps a share of the elements."""
        return self.codec.sparse

    def kept(self, n: int) -> int:
        """The most of n elements that are kept: max(1, ceil(density n)), of the whole or of each tensor.

        With a budget of bytes it is 16 for each byte.
        """
        if not self.sparse or n == 0:
            return n
        if self.max_bytes is not None:
            return min(n, 16 * self.max_bytes)
        return _num_kept(n, self.tensors, self.density)

    @property
    def share(self) -> Fraction:
        """The density as it is written in decimal."""
        return _as_written(self.density)

    def expects_signs(self, n: int, count: int, shapes: Shapes | None) -> bool:
        """Whether so many of n values may be written as `signs` does: where there is time for `grid` and that."""
        symbols = KEPT_VALUES[self.codec.values].symbols if self.sparse else None
        if symbols is None or signs.NAME not in map(versioned, self.coders):
            return False
        cost_ns = grid.cost_ns(n, count, shapes) + signs.cost_ns(count, symbols)
        return cost_ns <= 1e6 * self.code_ms

    def index_codes(self) -> dict[int, IndexCode]:
        """The index coders that may be used: the baseline first."""
        allowed = {
            key: code for key, code in INDEX_CODES.items() if code.baseline or code.name in self.coders
        }
        return dict(sorted(allowed.items(), key=lambda item: not item[1].baseline))


@lru_cache(maxsize=64)
def _as_written(density: float) -> Fraction:
    return Fraction(repr(density))


@lru_cache(maxsize=64)
def _num_kept(n: int, tensors: tuple[int, ...], density: float) -> int:
    return sum(counts(n, tensors, _as_written(density)))


def versioned(name: str) -> str:
    """A name with its version, which is 1 where it has none."""
    return name if "/" in name else name + _FIRST_VERSION


def unversioned(name: str) -> str:
    """A name as the tables here have it: version 1 goes without saying."""
    return name.removesuffix(_FIRST_VERSION)


def names() -> tuple[str, ...]:
    """All codecs and coders that this implementation speaks, with their versions, for the birth certificate."""
    return (
        *map(versioned, (*CODECS, seeded.NAME)),
        *(code.name for code in INDEX_CODES.values()),
        signs.NAME,
    )


def baseline() -> tuple[str, ...]:
    """Those of `names()` that are mandatory: what a device speaks whose birth certificate names none."""
    coders = (code.name for code in INDEX_CODES.values() if code.baseline)
    return (*(versioned(name) for name, codec in CODECS.items() if codec.baseline), *coders)


def optional_coders() -> tuple[str, ...]:
    """The coders that not everybody has: for updates, where both sides have them."""
    return (*(code.name for code in INDEX_CODES.values() if not code.baseline), signs.NAME)


def check_coders(coders: Iterable[str]) -> None:
    """Refuse a setting that names a coder which does not exist.

    Raises:
        CodecError: with the names that do.
    """
    for name in coders:
        if versioned(name) not in optional_coders():
            known = ", ".join(optional_coders()) or "none but the baseline, which needs no naming"
            raise CodecError(f"unknown coder {name[:64]!r}; known are {known}", reason="unknown-codec")
