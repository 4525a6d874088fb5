"""Checkpoints in the journal's database: bytes that stand for all facts up to a number.

They go in piece by piece, in transactions between which others write, and count from the last one on, which names them.
So a kill at any moment leaves the checkpoints that were there before; pieces that nothing names go with the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from fedmq_coordinator.core.blobs import Blob, MemoryBlob
from fedmq_coordinator.shell.store_database import Database
from fedmq_coordinator.shell.store_schema import CHECKPOINT_PIECES, CHECKPOINTS, FACTS
from fedmq_protocol.errors import StoreError

KEPT: Final = 2
"""So many are there: should the newest one not read, the one before it does."""

_PIECE_BYTES: Final = 1024 * 1024
"""A transaction's worth: so long others wait."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """One that is there.

    Attributes:
        number: of the newest fact that it stands for.
        at: when that fact was written, in seconds since the epoch.
    """

    number: int
    at: float


class Checkpoints:
    """The checkpoints of one journal. Any thread may read, one may write."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self) -> list[StoredCheckpoint]:
        """Those that are there, the newest first.

        Raises:
            StoreError: the database fails.
        """
        chosen = select(CHECKPOINTS.c.seq, CHECKPOINTS.c.at).order_by(CHECKPOINTS.c.seq.desc())
        return [
            StoredCheckpoint(*row)
            for row in self._database.read(lambda connection: connection.execute(chosen).all())
        ]

    def read(self, number: int) -> Blob:
        """The bytes of the one that stands for facts up to `number`.

        Raises:
            StoreError: they are not what was written, or were written for other facts than are there.
        """

        def work(connection: Connection) -> tuple[bytes | None, bytes]:
            named = select(CHECKPOINTS.c.sha256).join(
                FACTS, (FACTS.c.seq == CHECKPOINTS.c.seq) & (FACTS.c.checksum == CHECKPOINTS.c.fact_checksum)
            )
            sha256 = connection.execute(named.where(CHECKPOINTS.c.seq == number)).scalar()
            chosen = select(CHECKPOINT_PIECES.c.data).where(CHECKPOINT_PIECES.c.seq == number)
            pieces = connection.execute(chosen.order_by(CHECKPOINT_PIECES.c.piece)).scalars()
            return sha256, b"".join(pieces) if sha256 else b""

        sha256, data = self._database.read(work)
        if sha256 is None:
            raise StoreError(f"the journal's fact number {number} is not the one that it was made at")
        if hashlib.sha256(data).digest() != sha256:
            raise StoreError("its bytes are not what was written")
        return MemoryBlob(data)

    def keep(self, number: int, pieces: Iterable[bytes | memoryview]) -> int:
        """Write one, and let go of all but the newest `KEPT`.

        Args:
            number: of the newest fact that it stands for, which must be there.
            pieces: its bytes, in any portions.

        Returns:
            How many bytes it has.

        Raises:
            FencedError: a newer epoch has begun.
            StoreError: the disk is full, or the database fails otherwise.
        """
        digest, size = hashlib.sha256(), 0
        for index, data in enumerate(_portions(pieces)):
            digest.update(data)
            size += len(data)
            self._database.write(lambda connection, i=index, d=data: _put(connection, number, i, d))  # type: ignore[misc]
        self._database.write(lambda connection: _name(connection, number, digest.digest()))
        return size

    def forget(self) -> None:
        """Remove all of them: the next start folds the journal from its first fact.

        Raises:
            StoreError: the database fails.
        """

        def work(connection: Connection) -> None:
            connection.execute(delete(CHECKPOINTS))
            connection.execute(delete(CHECKPOINT_PIECES))

        self._database.write(work)


def _put(connection: Connection, number: int, index: int, data: bytes) -> None:
    here = (CHECKPOINT_PIECES.c.seq == number, CHECKPOINT_PIECES.c.piece >= index)
    connection.execute(delete(CHECKPOINT_PIECES).where(*here))  # of a kill before, or of this, done already
    connection.execute(insert(CHECKPOINT_PIECES).values(seq=number, piece=index, data=data))


def _name(connection: Connection, number: int, sha256: bytes) -> None:
    """Make pieces a checkpoint, and remove what is too much."""
    at, checksum = connection.execute(select(FACTS.c.at, FACTS.c.checksum).where(FACTS.c.seq == number)).one()
    connection.execute(delete(CHECKPOINTS).where(CHECKPOINTS.c.seq >= number))
    connection.execute(insert(CHECKPOINTS).values(seq=number, at=at, fact_checksum=checksum, sha256=sha256))
    newest = select(CHECKPOINTS.c.seq).order_by(CHECKPOINTS.c.seq.desc()).limit(KEPT)
    kept = list(connection.execute(newest).scalars())
    connection.execute(delete(CHECKPOINTS).where(CHECKPOINTS.c.seq.not_in(kept)))
    connection.execute(delete(CHECKPOINT_PIECES).where(CHECKPOINT_PIECES.c.seq.not_in(kept)))


def _portions(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The same bytes in portions of a transaction each."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        while len(rest) >= _PIECE_BYTES:
            yield bytes(rest[:_PIECE_BYTES])
            del rest[:_PIECE_BYTES]
    if rest:
        yield bytes(rest)
