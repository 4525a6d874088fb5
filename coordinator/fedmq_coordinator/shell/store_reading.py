"""Facts out of their rows, together with what lies beside them: a few queries for many facts.

A journal of a million facts is read in minutes when every fact asks for its bulk by itself, and in a fraction of that
when a group of them asks at once. A group's held bytes are bounded, so that it is no matter how large they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, func, select

from fedmq_coordinator.core.blobs import PIECE_BYTES, Blob
from fedmq_coordinator.core.facts import Fact
from fedmq_coordinator.shell.store_bulk import BulkTable, DroppedBlob, StoredBlob
from fedmq_coordinator.shell.store_database import Database
from fedmq_coordinator.shell.store_retention import Dropped
from fedmq_coordinator.shell.store_rows import DROPPABLE, HELD, entries, from_row, is_sound
from fedmq_coordinator.shell.store_schema import BULK
from fedmq_protocol.messages import BlobRef

GROUP_BYTES: Final = PIECE_BYTES
"""So many held bytes a group has at most, unless a single fact has more."""


@dataclass(frozen=True)
class _Entry:
    """One field of a fact whose bytes lie beside it."""

    row: Row[Any]
    field: str
    ref: BlobRef
    place: tuple[int, str]

    @property
    def is_held(self) -> bool:
        return self.field in HELD


class Reader:
    """Reads facts of one journal. Any thread may use it."""

    def __init__(self, database: Database, bulk: BulkTable) -> None:
        self._database = database
        self._bulk = bulk

    def facts(self, rows: Sequence[Row[Any]], leave_out: Collection[str]) -> Iterator[Fact]:
        """The facts of these rows, in their order, with what lies beside them but for fields that are left out.

        Raises:
            StoreError: something is not what was written.
        """
        group: list[tuple[Row[Any], list[_Entry]]] = []
        held = 0
        for row in rows:
            if not is_sound(row):
                raise self._database.damaged(f"fact number {row.seq} is not what was written")
            beside = (
                []
                if row.beside is None
                else [
                    _Entry(row, field, BlobRef(size=size, sha256=sha256), place)
                    for field, size, sha256, place in entries(row, leave_out)
                ]
            )
            size = sum(entry.ref.size for entry in beside if entry.is_held)
            if group and held + size > GROUP_BYTES:
                yield from self._whole(group)
                group, held = [], 0
            group.append((row, beside))
            held += size
        yield from self._whole(group)

    def _whole(self, group: Sequence[tuple[Row[Any], Sequence[_Entry]]]) -> Iterator[Fact]:
        found = self._beside([entry for _, beside in group for entry in beside])
        for row, beside in group:
            fact = from_row(row)
            yield (
                fact.model_copy(update={entry.field: found[entry.place] for entry in beside})
                if beside
                else fact
            )

    def _beside(self, wanted: Sequence[_Entry]) -> dict[tuple[int, str], bytes | Blob | None]:
        """By place: bytes of what a fact holds as such; of everything else, where they lie; None if dropped."""
        if not wanted:
            return {}
        sizes = self._sizes({entry.place[0] for entry in wanted})
        here = [entry for entry in wanted if sizes.get(entry.place) == entry.ref.size]
        small = {entry.place for entry in here if entry.is_held and entry.ref.size <= PIECE_BYTES}
        pieces = self._first_pieces({number for number, _ in small}) if small else {}
        found: dict[tuple[int, str], bytes | Blob | None] = {}
        for entry in here:
            blob = StoredBlob(self._bulk, *entry.place, entry.ref)
            if not entry.is_held:
                found[entry.place] = blob
                continue
            data = pieces.get(entry.place, b"") if entry.place in small else blob.read(0, entry.ref.size)
            if hashlib.sha256(data).digest() == entry.ref.sha256:
                found[entry.place] = data
        missing = [entry for entry in wanted if entry.place not in found]
        if missing:
            # Looked up after the bytes were missed: a kill may have come when a part of them had gone.
            dropped = self._database.read(Dropped.read)
            found.update((entry.place, self._lost(entry, dropped)) for entry in missing)
        return found

    def _lost(self, entry: _Entry, dropped: Dropped) -> Blob | None:
        row, what = entry.row, f"the {entry.field} of fact number {entry.row.seq}"
        if not dropped.covers(row.run, row.kind, entry.field, row.seq):
            raise self._database.damaged(f"{what} is not what was written")
        if DROPPABLE.get(row.kind) == entry.field:
            return None
        return DroppedBlob(f"{what} in {self._database.name}", entry.ref)

    def _sizes(self, numbers: Collection[int]) -> dict[tuple[int, str], int]:
        chosen = select(BULK.c.seq, BULK.c.field, func.sum(func.length(BULK.c.data)))
        chosen = chosen.where(BULK.c.seq.in_(numbers)).group_by(BULK.c.seq, BULK.c.field)
        rows = self._database.read(lambda connection: connection.execute(chosen).all())
        return {(seq, field): int(size) for seq, field, size in rows}

    def _first_pieces(self, numbers: Collection[int]) -> dict[tuple[int, str], bytes]:
        chosen = select(BULK.c.seq, BULK.c.field, BULK.c.data).where(
            BULK.c.seq.in_(numbers), BULK.c.field.in_(HELD), BULK.c.piece == 0
        )
        rows = self._database.read(lambda connection: connection.execute(chosen).all())
        return {(seq, field): data for seq, field, data in rows}
