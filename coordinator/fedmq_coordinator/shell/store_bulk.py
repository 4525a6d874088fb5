"""Large bytes in the journal's database: rows of one piece each, read back one piece at a time.

Bytes belong to a fact, by its number, or were written ahead of their fact: a model's snapshot goes into the database
while it is being made, in transactions of a piece each between which others' facts have their turn, and the fact names
it when it comes. Such bytes have negative numbers. What was written ahead for a fact that never came is removed when
the journal is opened.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from fedmq_coordinator.core.blobs import PIECE_BYTES, Blob, MemoryBlob
from fedmq_coordinator.shell.store_database import Database
from fedmq_coordinator.shell.store_schema import BULK
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import BlobRef

AHEAD: Final = "ahead"
"""The field's name of what was written ahead of its fact."""

_REMOVED_BYTES: Final = 8 * 1024 * 1024
_REMOVED_ROWS: Final = 256
"""So much goes in one transaction."""
_PIECES_KEPT: Final = 2
"""Chunks are cut one after another out of a piece, and devices that ask are mostly at the same place."""


class DroppedError(StoreError):
    """What is asked for was there once, and retention has dropped it."""


class BulkTable:
    """The table `bulk`. Any thread may read and write ahead."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.damaged = database.damaged
        self._cache: OrderedDict[tuple[int, str, int], bytes] = OrderedDict()
        self._caching = threading.Lock()
        self._lowest = 0

    def prepare(self, connection: Connection, named: Callable[[], Iterable[int]]) -> None:
        """Remove what was written ahead and is not `named` by any fact."""
        chosen = select(BULK.c.seq).distinct().where(BULK.c.seq < 0)
        here = set(connection.execute(chosen).scalars())
        if here:
            orphans = sorted(here - set(named()))
            for start in range(0, len(orphans), 500):
                connection.execute(delete(BULK).where(BULK.c.seq.in_(orphans[start : start + 500])))
        self._lowest = min(here, default=0)

    def begin(self) -> WritingAhead:
        """Begin bytes that a fact will name later."""
        with self._caching:
            self._lowest -= 1
            return WritingAhead(self, self._lowest)

    def insert(self, connection: Connection, belongings: Iterable[tuple[int, str, Blob]]) -> None:
        """Write what belongs to facts: number, field, and bytes."""
        rows: list[dict[str, Any]] = []
        size = 0
        for seq, field, blob in belongings:
            pieces = blob.pieces() if blob.ref.size else iter([b""])
            for number, data in enumerate(pieces):
                rows.append({"seq": seq, "field": field, "piece": number, "data": data})
                size += len(data)
                if size >= PIECE_BYTES:
                    connection.execute(insert(BULK), rows)
                    rows, size = [], 0
        if rows:
            connection.execute(insert(BULK), rows)

    def write_ahead(self, seq: int, piece: int, data: bytes) -> None:
        """Write one piece, in a transaction of its own."""
        here = (BULK.c.seq == seq, BULK.c.field == AHEAD, BULK.c.piece == piece)
        again = False

        def work(connection: Connection) -> None:
            nonlocal again
            if again:
                connection.execute(delete(BULK).where(*here))
            again = True
            connection.execute(insert(BULK).values(seq=seq, field=AHEAD, piece=piece, data=data))

        self._database.write(work)

    def check_ahead(self, connection: Connection, sizes: Mapping[int, int]) -> None:
        """See that what was written ahead is there still, after a server has been away.

        Raises:
            StoreError: it is not.
        """
        for seq, size in sizes.items():
            chosen = select(func.sum(func.length(BULK.c.data))).where(
                BULK.c.seq == seq, BULK.c.field == AHEAD
            )
            if connection.execute(chosen).scalar() != size:
                raise self.damaged(f"bytes of number {seq} had been written, and are not there")

    def remove(self, places: Iterable[tuple[int, str]]) -> None:
        """Delete the bytes of these numbers and fields, a little at a time."""
        rows: list[dict[str, Any]] = []
        size = 0
        for seq, field in places:
            chosen = select(BULK.c.piece, func.length(BULK.c.data)).where(
                BULK.c.seq == seq, BULK.c.field == field
            )
            pieces = self._database.read(lambda connection, of=chosen: connection.execute(of).all())  # type: ignore[misc]
            for piece, length in pieces:
                rows.append({"of_seq": seq, "of_field": field, "of_piece": piece})
                size += length
                if size >= _REMOVED_BYTES or len(rows) >= _REMOVED_ROWS:
                    self._remove(rows)
                    rows, size = [], 0
        if rows:
            self._remove(rows)

    def _remove(self, rows: list[dict[str, Any]]) -> None:
        gone = delete(BULK).where(
            BULK.c.seq == bindparam("of_seq"),
            BULK.c.field == bindparam("of_field"),
            BULK.c.piece == bindparam("of_piece"),
        )
        self._database.write(lambda connection: connection.execute(gone, rows))

    def piece(self, seq: int, field: str, number: int) -> bytes:
        """One piece; empty if there is none."""
        key = seq, field, number
        with self._caching:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        chosen = select(BULK.c.data).where(BULK.c.seq == seq, BULK.c.field == field, BULK.c.piece == number)
        data: bytes = self._database.read(lambda connection: connection.execute(chosen).scalar()) or b""
        with self._caching:
            self._cache[key] = data
            while len(self._cache) > _PIECES_KEPT:
                self._cache.popitem(last=False)
        return data


class StoredBlob(Blob):
    """Bytes in the database.

    Attributes:
        seq: the number that they have there.
        field: their field's name.
    """

    def __init__(self, table: BulkTable, seq: int, field: str, ref: BlobRef) -> None:
        self._table = table
        self.seq = seq
        self.field = field
        self.ref = ref

    def read(self, start: int, length: int) -> bytes:
        stop = min(self.ref.size, start + length)
        parts = []
        while start < stop:
            number, skipped = divmod(start, PIECE_BYTES)
            part = self._table.piece(self.seq, self.field, number)[skipped : skipped + stop - start]
            if not part:
                raise self._table.damaged(f"bytes of the {self.field} number {self.seq} are missing")
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """All of it in order, held against its hash: an error comes at the end, so use nothing before."""
        digest = hashlib.sha256()
        for part in super().pieces():
            digest.update(part)
            yield part
        if digest.digest() != self.ref.sha256:
            raise self._table.damaged(f"the {self.field} number {self.seq} is not what was written")


class DroppedBlob(Blob):
    """Bytes that retention has dropped: how many they were, and their hash, are still known.

    Args:
        what: whose they were, for the error.
        ref: size and hash.
    """

    def __init__(self, what: str, ref: BlobRef) -> None:
        self._what = what
        self.ref = ref

    def read(self, start: int, length: int) -> bytes:  # noqa: ARG002 - there is nothing to read
        raise DroppedError(f"{self._what} is gone: retention has dropped it")


class WritingAhead:
    """Bytes on their way into the database; what stays below a piece stays in memory, and goes there with its fact."""

    def __init__(self, table: BulkTable, seq: int) -> None:
        self._table = table
        self._seq = seq
        self._rest = bytearray()
        self._pieces = 0
        self._size = 0
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes.

        Raises:
            StoreError: the disk is full, or the database fails otherwise.
        """
        view = memoryview(data).cast("B")
        self._size += len(view)
        self._digest.update(view)
        while view:
            if len(self._rest) == PIECE_BYTES:
                self._flush()
            room = PIECE_BYTES - len(self._rest)
            self._rest += view[:room]
            view = view[room:]

    def done(self) -> Blob:
        """The bytes, to be read or named in a fact.

        Raises:
            StoreError: as `write`.
        """
        if not self._pieces:
            return MemoryBlob(bytes(self._rest))
        if self._rest:
            self._flush()
        ref = BlobRef(size=self._size, sha256=self._digest.digest())
        return StoredBlob(self._table, self._seq, AHEAD, ref)

    def _flush(self) -> None:
        self._table.write_ahead(self._seq, self._pieces, bytes(self._rest))
        self._pieces += 1
        self._rest = bytearray()
