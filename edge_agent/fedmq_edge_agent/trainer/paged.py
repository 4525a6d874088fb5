"""Model-sized vectors that lie in files, so that the system may have their memory whenever they are not at work.

A large vector is the mapping of a file: its pages count as resident from when they are touched until `let_go`, after
which they are read from the file (in truth mostly from the page cache) again. Small vectors lie in ordinary memory,
where files would only cost writes. Whoever goes through a whole vector does it by `slices`, which let go of what lies
behind, so that a pass over 400 MB has a few megabytes resident.

The disk pays for it: what was changed is written back when the system sees fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

SLICE: Final = 1 << 20
"""Elements worked on at once where all are: 4 MB."""
LARGE: Final = 1 << 22
"""Elements from which on a vector lies in a file: 16 MB."""
LARGE_PIECE_BYTES: Final = 1 << 22
"""A model's tensor with less memory than that is never let go: it would not be worth the while."""

_ITEM_BYTES: Final = 4


class Paged:
    """float32[n], in ordinary memory or in a mapped file.

    Args:
        vector: the elements.
        mapping: what they are a part of; None: ordinary memory.
        offset: where in the mapping they begin, in bytes.
    """

    def __init__(self, vector: Vector, mapping: mmap.mmap | None = None, offset: int = 0) -> None:
        self.vector = vector
        self._mapping = mapping
        self._offset = offset

    def __len__(self) -> int:
        return len(self.vector)

    def let_go(self, start: int = 0, stop: int | None = None) -> None:
        """Tell the system that these elements will not be needed soon. Their values stay."""
        if self._mapping is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        end = self._offset + _ITEM_BYTES * (len(self.vector) if stop is None else stop)
        begin = (self._offset + _ITEM_BYTES * start) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def flush(self) -> None:
        """Write what was changed to the disk, and wait until it is there.

        Raises:
            OSError: the disk does not take it.
        """
        if self._mapping is not None:
            self._mapping.flush()

    def slices(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Vector]]:
        """The elements from `start` to before `stop`, piece by piece: where a piece begins, and the piece itself.

        What was handed out is let go when the next one is asked for.
        """
        last = len(self.vector) if stop is None else stop
        for begin in range(start, last, SLICE):
            end = min(begin + SLICE, last)
            yield begin, self.vector[begin:end]
            self.let_go(begin, end)

    def sha256(self) -> bytes:
        """Of the values, float32 little-endian."""
        digest = hashlib.sha256()
        for _, piece in self.slices():
            digest.update(piece.data)
        return digest.digest()


def scratch(size: int, folder: Path) -> Paged:
    """float32[size] to work in, all zero. A large one lies in a file of `folder` that has no name and leaves nothing.

    Where there is no room for the file, ordinary memory serves.
    """
    if size >= LARGE:
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
            return map_room(file.fileno(), size, 0)
    return Paged(np.zeros(size, np.float32))


def map_room(descriptor: int, size: int, offset: int) -> Paged:
    """Make room in a file for float32[size] from `offset` on, and map it.

    The room is really taken, so that a full disk is an error here and not the end of the process at the first write.

    Raises:
        OSError: there is no room.
    """
    length = offset + _ITEM_BYTES * size
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, max(1, length))
    os.truncate(descriptor, length)
    mapping = mmap.mmap(descriptor, length)
    return Paged(np.frombuffer(mapping, np.float32, size, offset), mapping, offset)


def map_file(path: Path, size: int) -> Paged:
    """float32[size] from a file that holds just that, little-endian; to be read alone: what is changed may get lost.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has another length.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length != _ITEM_BYTES * size:
            raise ValueError(f"{path} holds {length // _ITEM_BYTES} values, not {size}")
        if size < LARGE:
            return Paged(np.fromfile(file, np.float32))
        mapping = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY)
    return Paged(np.frombuffer(mapping, np.float32, size), mapping)
