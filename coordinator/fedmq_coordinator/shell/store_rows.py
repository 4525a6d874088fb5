"""A fact and its row: what of it lies beside it, and how to see that a row is what was written."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import NoneType
from typing import Any, Final, get_args

import msgpack
from sqlalchemy import Connection, Row, select

from fedmq_coordinator.core.blobs import EMPTY, Blob, MemoryBlob
from fedmq_coordinator.core.facts import Fact, dump, load
from fedmq_coordinator.shell.store_bulk import AHEAD, StoredBlob
from fedmq_coordinator.shell.store_schema import FACTS

BESIDE_BYTES: Final = 16_384
"""A larger bytes field lies beside its fact."""

DROPPABLE: Final = {"UpdateAccepted": "payload", "VersionPublished": "private"}
"""What retention drops at every snapshot, by kind; always beside its fact, so that facts are never rewritten."""

BULKY_FIELDS: Final = frozenset({"payload", "private", "snapshot", "delta", "initial"})
"""What `read(leave_out=...)` may leave out to walk through a journal lightly."""

HELD: Final = frozenset({"payload", "recipe"})
"""Fields that are bytes in a fact; the others are blobs, which know where theirs lie."""
WRITTEN_AHEAD: Final = ("RunCreated", "VersionPublished")
"""Kinds of facts that may name what was written ahead of them."""

_ENTRY: Final = 2
"""Size and SHA-256; a third value is the number of what was written ahead."""

Belonging = tuple[int, str, Blob]
"""What is to be written beside a fact: its number, the field, the bytes."""


def to_rows(facts: Sequence[Fact], *, after: int) -> tuple[list[dict[str, Any]], list[Belonging]]:
    """Rows for `facts`, numbered from `after` on, and what belongs beside them and is not there yet."""
    rows: list[dict[str, Any]] = []
    belongings: list[Belonging] = []
    for seq, fact in enumerate(facts, after + 1):
        slim, beside = _split_off(fact)
        kind, body = dump(slim)
        index = {field: _entry(blob) for field, blob in beside.items()}
        packed = msgpack.packb(index) if index else None
        rows.append(
            {
                "seq": seq,
                "run": getattr(fact, "run", None),
                "kind": kind,
                "at": fact.at,
                "body": body,
                "beside": packed,
                "checksum": _checksum(kind, body, packed),
            }
        )
        belongings += [(seq, field, blob) for field, blob in beside.items() if not _is_ahead(blob)]
    return rows, belongings


def is_sound(row: Row[Any]) -> bool:
    """Whether a row of `facts` is what was written; SQLite keeps the type with the value, and gives any."""
    of_its_kind = isinstance(row.kind, str) and isinstance(row.body, bytes)
    of_its_kind &= isinstance(row.beside, bytes | None)
    return of_its_kind and bool(row.checksum == _checksum(row.kind, row.body, row.beside))


def from_row(row: Row[Any]) -> Fact:
    """The fact without what lies beside it.

    Raises:
        StoreError: it does not read back.
    """
    return load(row.kind, row.body)


def entries(row: Row[Any], leave_out: Collection[str]) -> Iterator[tuple[str, int, bytes, tuple[int, str]]]:
    """What a row says of bytes beside it: field, size, SHA-256, and the number and field in `bulk`."""
    for field, (size, sha256, *ahead) in msgpack.unpackb(row.beside or b"\x80").items():
        if field not in leave_out:
            yield field, size, sha256, (ahead[0], AHEAD) if ahead else (row.seq, field)


def ahead(indices: Iterable[bytes], field: str | None = None) -> Iterator[int]:
    """The numbers of what was written ahead, in one field or in all, out of what facts' rows say."""
    for index in indices:
        for name, entry in msgpack.unpackb(index).items():
            if len(entry) > _ENTRY and field in {None, name}:
                yield entry[2]


def sizes_ahead(indices: Iterable[bytes | None]) -> dict[int, int]:
    """How many bytes were written ahead under which number, out of what facts' rows say."""
    found = (entry for index in indices if index for entry in msgpack.unpackb(index).values())
    return {entry[2]: entry[0] for entry in found if len(entry) > _ENTRY}


def named_ahead(connection: Connection) -> Iterator[int]:
    """The numbers of all that was written ahead and is named by a fact."""
    chosen = select(FACTS.c.beside).where(FACTS.c.kind.in_(WRITTEN_AHEAD), FACTS.c.beside.is_not(None))
    return ahead(connection.execute(chosen).scalars())


def _checksum(kind: str, body: bytes, beside: bytes | None) -> int:
    return zlib.crc32(beside or b"", zlib.crc32(body, zlib.crc32(kind.encode())))


def _split_off(fact: Fact) -> tuple[Fact, dict[str, Blob]]:
    """The fact without its bulk, and the bulk by field."""
    droppable = DROPPABLE.get(type(fact).__name__)
    found = {field: MemoryBlob(value) if isinstance(value, bytes) else value for field, value in fact}
    beside = {
        field: value
        for field, value in found.items()
        if isinstance(value, Blob)
        and (field == droppable or value.ref.size > BESIDE_BYTES or _is_ahead(value))
    }
    empty = {field: _empty(type(fact), field) for field in beside}
    return fact.model_copy(update=empty), beside


def _empty(kind: type[Fact], field: str) -> Blob | None:
    """What stands in a fact for bytes that lie beside it, as its model allows."""
    return None if NoneType in get_args(kind.model_fields[field].annotation) else EMPTY


def _is_ahead(blob: Blob) -> bool:
    return isinstance(blob, StoredBlob) and blob.field == AHEAD


def _entry(blob: Blob) -> list[Any]:
    """What the fact's row says of bytes beside it: size, SHA-256, and their number if they were written ahead."""
    number = [blob.seq] if isinstance(blob, StoredBlob) and blob.field == AHEAD else []
    return [blob.ref.size, blob.ref.sha256, *number]
