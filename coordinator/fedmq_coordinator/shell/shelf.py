"""The core's shelf in production: blobs lie in the journal's database, vectors to be read by somebody else in files."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.blobs import Writing
from fedmq_coordinator.shell.store import Journal

Vector = NDArray[np.float32]

_PREFIX: Final = "lent-"
_HELD_BYTES: Final = 4 * 1024 * 1024
_SLICE: Final = 1 << 20


class StoreShelf:
    """A `fedmq_coordinator.core.blobs.Shelf` over a journal and a folder.

    Args:
        journal: takes the blobs.
        folder: takes vectors for as long as somebody holds them; what a killed coordinator left there is removed.
    """

    def __init__(self, journal: Journal, folder: Path) -> None:
        self._journal = journal
        self._folder = folder
        for left in folder.glob(f"{_PREFIX}*"):
            left.unlink(missing_ok=True)

    def begin(self) -> Writing:
        """Begin a blob."""
        return self._journal.begin_blob()

    def scratch(self) -> BinaryIO:
        """A file without a name."""
        return tempfile.TemporaryFile(dir=self._folder)

    def lend(self, vector: Vector) -> Vector:
        """A copy of `vector`: in memory if it is small, else an `np.memmap` of raw values whose file goes with it."""
        if vector.nbytes <= _HELD_BYTES:
            return vector.copy()
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=".f32", dir=self._folder)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for start in range(0, len(vector), _SLICE):
                    file.write(np.ascontiguousarray(vector[start : start + _SLICE], dtype="<f4").data)
            lent = np.memmap(path, dtype="<f4", mode="r")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        weakref.finalize(lent, path.unlink, missing_ok=True)
        return lent
