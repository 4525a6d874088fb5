"""Bytes of a model's size, which the core names and passes on without holding them.

A blob never changes and knows its size and hash. Where its bytes lie is its own matter: small ones in memory, large
ones wherever the `Shelf` puts them, in production in rows of the journal's database. The core is as pure with it as
with an array: what is put on the shelf comes back the same, and nothing else can be seen of it.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from fedmq_protocol.messages import BlobRef

Vector = NDArray[np.float32]

PIECE_BYTES: Final = 4 * 1024 * 1024
"""What is worked on at once when a blob is read or written from end to end."""


class Blob(ABC):
    """Bytes that never change.

    Attributes:
        ref: how many, and their SHA-256.
    """

    ref: BlobRef

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and self.ref == other.ref

    def __hash__(self) -> int:
        return hash(self.ref.sha256)

    @abstractmethod
    def read(self, start: int, length: int) -> bytes:
        """Bytes start ... start + length - 1; fewer where the blob ends before.

        Raises:
            StoreError: they cannot be read back.
        """

    @property
    def data(self) -> bytes:
        """All of it."""
        return self.read(0, self.ref.size)

    def pieces(self) -> Iterator[bytes]:
        """All of it in order, piece by piece; nothing if it is empty."""
        for start in range(0, self.ref.size, PIECE_BYTES):
            yield self.read(start, PIECE_BYTES)


class MemoryBlob(Blob):
    """A blob that is held in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.ref = BlobRef(size=len(data), sha256=hashlib.sha256(data).digest())

    def read(self, start: int, length: int) -> bytes:
        return self._data[start : start + length]


EMPTY: Final = MemoryBlob(b"")


class Writing(Protocol):
    """A blob that is being made."""

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes at its end; they are copied or written before this returns."""

    def done(self) -> Blob:
        """The blob; nothing can be added any more."""


class Shelf(Protocol):
    """Where what is too large to be held is put."""

    def begin(self) -> Writing:
        """Begin a blob. One that is never done is forgotten."""

    def scratch(self) -> BinaryIO:
        """An empty file that can seek, and is gone when it is closed."""

    def lend(self, vector: Vector) -> Vector:
        """A copy of float32[n] for somebody else to read later: `vector` may change meanwhile."""


class _MemoryWriting:
    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes | memoryview) -> None:
        self._parts.append(bytes(data))

    def done(self) -> Blob:
        return MemoryBlob(b"".join(self._parts))


class MemoryShelf:
    """Keeps everything in memory, for small models and tests."""

    def begin(self) -> Writing:
        return _MemoryWriting()

    def scratch(self) -> BinaryIO:
        return io.BytesIO()

    def lend(self, vector: Vector) -> Vector:
        return vector.copy()


def _as_blob(value: object) -> object:
    return MemoryBlob(value) if isinstance(value, bytes) else value


def _as_bytes(blob: Blob) -> bytes:
    return blob.data


Bulk = Annotated[InstanceOf[Blob], BeforeValidator(_as_blob), PlainSerializer(_as_bytes)]
"""A fact's field: a blob in the fact, bytes wherever the fact is written down as a whole."""
