"""A float32 vector as the journal keeps it, written and read slice by slice: a payload of the codec `float32`.

What is written is not compressed: float32 weights hardly are, and at a model's size it would take longer than the disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedmq_coordinator.core.blobs import Blob, Shelf
from fedmq_protocol.codecs import flushed
from fedmq_protocol.errors import StoreError

Vector = NDArray[np.float32]

_SLICE: Final = 1 << 20
_HEAD: Final = struct.Struct("<BIB")  # tag of float32, number of elements, whether a zstd frame follows
_TAG: Final = 1
_RAW: Final = 0
_ZSTD: Final = 1


def pack_vector(vector: Vector, shelf: Shelf) -> Blob:
    """Write float32[n], subnormals and -0 as +0."""
    writing = shelf.begin()
    writing.write(_HEAD.pack(_TAG, len(vector), _RAW))
    for start in range(0, len(vector), _SLICE):
        part = flushed(vector[start : start + _SLICE]).astype("<f4", copy=False)
        writing.write(part.data.cast("B"))
    return writing.done()


def unpack_vector(blob: Blob, out: Vector) -> None:
    """Read what `pack_vector`, or an earlier version of it that compressed, was given, into float32[n].

    Raises:
        StoreError: it is damaged, or of another length.
    """
    room = out.data.cast("B")
    filled = 0
    for part in _body(blob, len(out)):
        if filled + len(part) > len(room):
            raise StoreError("a vector in the journal is longer than its model")
        room[filled : filled + len(part)] = part
        filled += len(part)
    if filled != len(room):
        raise StoreError("a vector in the journal is shorter than its model")
    if np.dtype("<f4") != out.dtype:
        out.byteswap(inplace=True)


def _body(blob: Blob, size: int) -> Iterator[bytes | memoryview]:
    """The values' bytes, uncompressed."""
    pieces = blob.pieces()
    first = next(pieces, b"")
    if len(first) < _HEAD.size or _HEAD.unpack_from(first)[:2] != (_TAG, size):
        raise StoreError("a vector in the journal is not of its model's size")
    compressed = _HEAD.unpack_from(first)[2]
    parts = _chain(memoryview(first)[_HEAD.size :], pieces)
    if compressed == _RAW:
        yield from parts
        return
    if compressed != _ZSTD:
        raise StoreError("a vector in the journal is in an unknown form")
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        for part in parts:
            yield frame.decompress(bytes(part))
    except zstandard.ZstdError as error:
        msg = f"a vector in the journal does not decompress: {error}"
        raise StoreError(msg) from error


def _chain(first: memoryview, rest: Iterator[bytes]) -> Iterator[bytes | memoryview]:
    yield first
    yield from rest
