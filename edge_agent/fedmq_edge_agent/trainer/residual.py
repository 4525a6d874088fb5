"""The residual's file: written where it is computed, read slice by slice, and either whole or not there.

    magic | SHA-256 of all that follows | length of the owner | owner, msgpack | zeros | values, float32

The values begin at a multiple of 64 bytes, so that the file can be mapped: p = delta + e is formed in the new file,
the codec takes out of it what is sent, and what is left there is the residual. Nowhere else is there a copy of it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from fedmq_edge_agent.trainer import paged
from fedmq_edge_agent.trainer.durable import replacing
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.paged import Paged, map_room
from fedmq_protocol.codecs.decoded import Dense

Vector = NDArray[np.float32]

_MAGIC: Final = b"fedmq residual 2\n"
_UNALIGNED: Final = b"fedmq residual 1\n"  # as before, without the zeros
_DIGEST: Final = slice(len(_MAGIC), len(_MAGIC) + 32)  # SHA-256 of all that follows it
_LENGTH: Final = struct.Struct(">I")  # of the owner
_ALIGNMENT: Final = 64
_MAX_OWNER_BYTES: Final = 1 << 12
_PIECE_BYTES: Final = 1 << 22


@dataclass(frozen=True)
class Owner:
    """Whose residual it is; `""` where that is not known.

    Attributes:
        schema_hash: of the model that it belongs to.
        run: the run in which it arose.
        device: the device on which.
    """

    schema_hash: str
    run: str = ""
    device: str = ""

    def difference(self, other: Owner) -> str:
        """In what another owner differs, or ""."""
        for what in ("schema_hash", "run", "device"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine and theirs and mine != theirs:
                return f"{what.replace('_', ' ')} {theirs}, not {mine}"
        return ""


@contextmanager
def new_residual(path: Path, num_parameters: int, owner: Owner) -> Iterator[Paged]:
    """A residual, float32[num_parameters], all zero, that is on disk as `path` once the block ends well.

    Raises:
        OSError: the disk does not take it.
    """
    who = msgpack.packb([owner.schema_hash, owner.run, owner.device])
    head = bytearray(_MAGIC + bytes(_DIGEST.stop - _DIGEST.start) + _LENGTH.pack(len(who)) + who)
    head += bytes(-len(head) % _ALIGNMENT)
    with replacing(path) as file:
        values = map_room(file.fileno(), num_parameters, len(head))
        yield values
        digest = hashlib.sha256(memoryview(head)[_DIGEST.stop :])
        for _, piece in values.slices():
            digest.update(piece.data)
        head[_DIGEST] = digest.digest()
        values.flush()
        file.write(head)


class StoredResidual:
    """A residual on disk.

    Args:
        path: its file.
        num_parameters: how many values it must have.
        owner: whose it must be.

    Raises:
        TrainerError: `bad-residual`; it is missing, torn, or somebody else's.
    """

    def __init__(self, path: Path, num_parameters: int, owner: Owner) -> None:
        self.path = path
        self._count = num_parameters
        try:
            self._verify(owner)
        except OSError as error:
            raise TrainerError("bad-residual", f"{path} cannot be read: {error.strerror}") from None

    def _verify(self, owner: Owner) -> None:
        with self.path.open("rb") as file:
            digest, magic = hashlib.sha256(), file.read(len(_MAGIC))
            expected = file.read(_DIGEST.stop - _DIGEST.start)
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
            if magic not in {_MAGIC, _UNALIGNED} or digest.digest() != expected:
                raise TrainerError(
                    "bad-residual", f"{self.path} is torn, or no residual: its checksum does not fit"
                )
            file.seek(_DIGEST.stop)  # what the checksum vouches for was written by new_residual
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            self.owner = Owner(*msgpack.unpackb(file.read(min(length, _MAX_OWNER_BYTES))))
            start = file.tell()
            self._start = start if magic == _UNALIGNED else start + -start % _ALIGNMENT
            held = (os.fstat(file.fileno()).st_size - self._start) // _LENGTH.size
        difference = owner.difference(self.owner)
        if difference:
            raise TrainerError("bad-residual", f"{self.path} belongs to {difference}")
        if held != self._count:
            raise TrainerError("bad-residual", f"{self.path} holds {held} values, not {self._count}")

    def slices(self) -> Iterator[tuple[int, Vector]]:
        """The values, piece by piece: where a piece begins, and float32, the caller's own.

        Raises:
            OSError: the file is gone, or shorter than it was.
        """
        with self.path.open("rb") as file:
            file.seek(self._start)
            for begin in range(0, self._count, paged.SLICE):
                piece = np.empty(min(paged.SLICE, self._count - begin), np.float32)
                if file.readinto(piece.data.cast("B")) != piece.nbytes:
                    raise OSError(f"{self.path} ends too early")
                yield begin, piece

    def norm(self) -> float:
        """Euclidean length, summed in float64."""
        return float(np.sqrt(sum(Dense(piece).norm() ** 2 for _, piece in self.slices())))

    def read(self) -> Vector:
        """All of it, float32[num_parameters]."""
        return np.concatenate([piece for _, piece in self.slices()])
