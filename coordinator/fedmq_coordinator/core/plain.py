"""Objects as values that msgpack can write, by tables that name each of their attributes.

A class's `Table` says of every attribute either how it is written (`kept`) or why it need not be (`left_out`). A test
holds the tables against live objects, so that a new attribute cannot be forgotten.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.blobs import PIECE_BYTES, Blob

Array = NDArray[Any]
"""Of float32 or uint32."""


@dataclass(frozen=True)
class Form:
    """How a value is written, and read back."""

    plain: Callable[[Any], object]
    value: Callable[[Any], Any]


def _same(value: object) -> object:
    return value


AS_IS: Final = Form(_same, _same)
"""Numbers, strings, bytes, None; and mappings and lists of them, whose order stays."""

SET: Final = Form(sorted, set)


def mapping(of: Form, *, ordered: bool = False) -> Form:
    """A dictionary in its order; `ordered`: an `OrderedDict`."""

    def plain(value: Mapping[Any, Any]) -> object:
        return {key: of.plain(each) for key, each in value.items()}

    def back(value: Mapping[Any, Any]) -> object:
        made = {key: of.value(each) for key, each in value.items()}
        return OrderedDict(made) if ordered else made

    return Form(plain, back)


def lookup(of: Form) -> Form:
    """A dictionary whose order means nothing, and in which an entry without content says what no entry says."""
    return Form(
        lambda value: {key: of.plain(value[key]) for key in sorted(value) if value[key]},
        lambda plain: {key: of.value(each) for key, each in plain.items()},
    )


def newest(length: int) -> Form:
    """A deque of at most so many."""
    return Form(list, lambda value: deque(value, maxlen=length))


def row(kind: Callable[..., Any], *names: str) -> Form:
    """An object of plain attributes, given to `kind` in this order."""
    return Form(lambda value: [getattr(value, name) for name in names], lambda value: kind(*value))


@dataclass(frozen=True)
class Table:
    """What is kept of an object, and why the rest is not.

    Attributes:
        kept: attribute -> its form.
        left_out: attribute -> where it comes from instead.
    """

    kept: Mapping[str, Form]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def plain(self, thing: object) -> dict[str, object]:
        """What is kept of it."""
        return {name: form.plain(getattr(thing, name)) for name, form in self.kept.items()}

    def restore(self, thing: object, plain: Mapping[str, Any]) -> None:
        """Set the attributes of a fresh object.

        Raises:
            KeyError: one is missing.
        """
        for name, form in self.kept.items():
            setattr(thing, name, form.value(plain[name]))


class Arrays:
    """Arrays that are written behind the plain values that name them by number, each as little-endian 32-bit values.

    Args:
        source: where they are read from; None: they are being put together.
        start: where in `source` the first one begins.
        kinds: type and length of each.
    """

    def __init__(
        self, source: Blob | None = None, start: int = 0, kinds: list[tuple[str, int]] | None = None
    ) -> None:
        self._source = source
        self._start = start
        self.kinds = [] if kinds is None else kinds
        self._held: list[Array] = []

    def put(self, array: Array) -> int:
        """Add a copy of an array; return its number."""
        kind = array.dtype.newbyteorder("<")
        self._held.append(array.astype(kind, copy=True))
        self.kinds.append((kind.str, len(array)))
        return len(self._held) - 1

    def get(self, number: int) -> Array:
        """Read an array; the caller owns it.

        Raises:
            IndexError: there is none of this number.
            ValueError: its bytes are missing.
        """
        kind, length = self.kinds[number]
        if kind not in {"<f4", "<u4"} or self._source is None:
            raise ValueError(f"no array of kind {kind}")
        start = self._start + sum(4 * before for _, before in self.kinds[:number])
        made = np.empty(length, dtype=kind)
        room = made.data.cast("B")
        for offset in range(0, len(room), PIECE_BYTES):
            size = min(PIECE_BYTES, len(room) - offset)
            part = self._source.read(start + offset, size)
            if len(part) != size:
                raise ValueError("an array ends before its end")
            room[offset : offset + size] = part
        return made.astype(made.dtype.newbyteorder("="), copy=False)

    def floats(self, number: int, length: int) -> NDArray[np.float32]:
        """`get`, of float32[length].

        Raises:
            ValueError: it is not.
        """
        if self.kinds[number] != ("<f4", length):
            raise ValueError(f"an array is {self.kinds[number]} instead of {length} float32 values")
        return cast("NDArray[np.float32]", self.get(number))

    def indices(self, number: int, length: int, *, below: int) -> NDArray[np.uint32]:
        """`get`, of uint32[length], each less than `below`.

        Raises:
            ValueError: it is not.
        """
        if self.kinds[number] != ("<u4", length):
            raise ValueError(f"an array is {self.kinds[number]} instead of {length} uint32 values")
        made = cast("NDArray[np.uint32]", self.get(number))
        if length and int(made.max()) >= below:
            raise ValueError("an index is beyond the model")
        return made

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of all, in their order."""
        for array in self._held:
            view = array.data.cast("B")
            for offset in range(0, len(view), PIECE_BYTES):
                yield view[offset : offset + PIECE_BYTES]
