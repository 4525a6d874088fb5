"""The journal on disk: SQLite through SQLAlchemy Core, written so that PostgreSQL is another URL later.

Facts are appended in transactions and never changed. Bytes fields above `BESIDE_BYTES`, and the fields that retention
may drop whatever their size, lie in the table `bulk`, in rows rather than files: one transaction and one fsync hold the
fact and its bytes together (a file each would cost two fsyncs an update, more than a round's own work), no file is left
over when a process dies in between, and the same holds for another database. Bytes of a large model's size are written
ahead of their fact, and read back piece by piece where they are needed (`store_bulk`).

Retention: what a replay starts from is the newest version of a run whose `private` weights are in the journal. Older
private weights are dropped, and with them the payloads of updates that a step before that version folded in; both read
back as None. What remains is enough to replay the run (payloads still in the accumulator stay), to report on it, and to
rebuild every version that was published, for as long as the journal lives.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args

import msgpack
from sqlalchemy import (
    Connection,
    Engine,
    Row,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError

from fedmq_coordinator.core.blobs import EMPTY, Blob, MemoryBlob
from fedmq_coordinator.core.facts import JOURNAL_VERSION, Fact, VersionPublished, dump, load
from fedmq_coordinator.shell.lock import FolderLock
from fedmq_coordinator.shell.store_bulk import AHEAD, BulkTable, StoredBlob, WritingAhead
from fedmq_coordinator.shell.store_schema import BULK, FACTS, META, METADATA, NOTES, PRUNED, SOURCES
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import BlobRef

BESIDE_BYTES: Final = 16_384
"""A larger bytes field lies beside its fact."""

DROPPABLE: Final = {"UpdateAccepted": "payload", "VersionPublished": "private"}
"""What retention drops, by kind; always beside its fact, so that facts are never rewritten."""

BULKY_FIELDS: Final = frozenset({"payload", "private", "snapshot", "delta", "initial"})
"""What `read(leave_out=...)` may leave out to walk through a journal lightly."""

_HELD: Final = frozenset({"payload", "recipe"})
"""Fields that are bytes in a fact; the others are blobs, which know where theirs lie."""
_WRITTEN_AHEAD: Final = ("RunCreated", "VersionPublished")
"""Kinds of facts that may name what was written ahead of them."""
_ENTRY: Final = 2
"""Size and SHA-256; a third value is the number of what was written ahead."""
_OLDER: Final = frozenset({1})
"""Versions of the journal that this one reads as they are: 1 knew of nothing written ahead."""
_ROWS_A_READ: Final = 512
_BUSY_MS: Final = 10_000


class Journal:
    """The journal of one federation. Any thread may read and write ahead; one may append, and one prune."""

    def __init__(self, engine: Engine, name: str, lock: FolderLock | None) -> None:
        self._engine = engine
        self._name = name
        self._lock = lock
        self._bulk = BulkTable(engine, self._reporting, self._damaged)
        self._last = 0
        self._first_at: float | None = None
        self._last_at: float | None = None

    @classmethod
    def open(cls, state_dir: Path, *, federation: str, url: str | None = None) -> Journal:
        """Open the journal in `state_dir`, making it where there is none, and keep others out until `close`.

        Args:
            state_dir: the coordinator's folder; its lock is taken.
            federation: whose journal it must be.
            url: another database than `<state_dir>/journal.sqlite`, as an SQLAlchemy URL.

        Raises:
            StoreError: held by another process, of another version or federation, damaged, or not writable.
        """
        lock = FolderLock(state_dir)
        path = state_dir / "journal.sqlite"
        name = str(path) if url is None else make_url(url).render_as_string(hide_password=True)
        engine = create_engine(f"sqlite:///{path}" if url is None else url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
        journal = cls(engine, name, lock)
        try:
            journal._prepare(federation)
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def name(self) -> str:
        """The file, or the URL without its password."""
        return self._name

    @property
    def num_facts(self) -> int:
        return self._last

    @property
    def first_at(self) -> float | None:
        """When the first fact was written, in seconds since the epoch; None in an empty journal."""
        return self._first_at

    @property
    def last_at(self) -> float | None:
        """When the last fact was written."""
        return self._last_at

    def close(self) -> None:
        """Close the database and let go of the folder."""
        self._engine.dispose()
        if self._lock is not None:
            self._lock.release()

    # ------------------------------------------------------------------------------------------- writing

    def append(self, facts: Sequence[Fact]) -> None:
        """Write `facts` in one transaction: on return all of them are on disk, on an error none is.

        Raises:
            StoreError: the disk is full, or the database fails otherwise.
        """
        if not facts:
            return
        rows: list[dict[str, Any]] = []
        belongings: list[tuple[int, str, Blob]] = []
        for seq, fact in enumerate(facts, self._last + 1):
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
        with self._bulk.turn, self._reporting("write to"), self._engine.begin() as connection:
            connection.execute(insert(FACTS), rows)
            self._bulk.insert(connection, belongings)
        self._last += len(rows)
        self._last_at = facts[-1].at
        if self._first_at is None:
            self._first_at = facts[0].at

    def begin_blob(self) -> WritingAhead:
        """Begin large bytes of a fact that is still to be made; several may be under way, in any threads."""
        return self._bulk.begin()

    def prune(self, run: str, before_version: int) -> int:
        """Drop what no replay of `run` needs any more, now that `before_version` is there with its private weights.

        Older private weights, and payloads that are part of that version's weights, are gone from now on, and read back
        as None. It takes a while, in which others write: what is gone goes in transactions of a few pieces.

        Returns:
            How many facts lost their bulk.

        Raises:
            ValueError: that version was not published with private weights, so that everything is still needed.
            StoreError: the database fails.
        """
        anchor = self._seq_of_private(run, before_version)
        with self._bulk.turn, self._reporting("write to"), self._engine.begin() as connection:
            steps = select(func.max(FACTS.c.seq)).where(FACTS.c.run == run, FACTS.c.kind == "StepTaken")
            # What came between the last step and the version is in the accumulator, not in the version's weights.
            last_step = connection.execute(steps.where(FACTS.c.seq < anchor)).scalar() or 0
            needless = [
                each
                for kind, before in (("VersionPublished", anchor), ("UpdateAccepted", last_step))
                for each in _drop(connection, run, kind, before)
            ]
        self._bulk.remove(needless)
        return len(needless)

    def remember_source(self, run: str, task: str) -> None:
        """Keep where the task of `run` lies on this machine, for the model host after a restart."""
        with self._bulk.turn, self._reporting("write to"), self._engine.begin() as connection:
            connection.execute(delete(SOURCES).where(SOURCES.c.run == run))
            connection.execute(insert(SOURCES).values(run=run, task=task))

    def keep_note(self, name: str, data: bytes) -> None:
        """Remember something for the next start that no replay needs."""
        with self._bulk.turn, self._reporting("write to"), self._engine.begin() as connection:
            connection.execute(delete(NOTES).where(NOTES.c.name == name))
            connection.execute(insert(NOTES).values(name=name, data=data))

    # ------------------------------------------------------------------------------------------- reading

    def note(self, name: str) -> bytes | None:
        """What `keep_note` was given last."""
        with self._reporting("read"), self._engine.connect() as connection:
            data: bytes | None = connection.execute(select(NOTES.c.data).where(NOTES.c.name == name)).scalar()
        return data

    def read(
        self, *, run: str | None = None, kinds: Collection[str] = (), leave_out: Collection[str] = ()
    ) -> Iterator[Fact]:
        """All facts that are there now, in order; none that is appended meanwhile.

        Args:
            run: only this run's facts.
            kinds: only facts of these kinds.
            leave_out: fields out of `BULKY_FIELDS` that are not looked for where they lie beside their fact; they read
                as None (`initial`, which is never None, as empty).

        Raises:
            StoreError: the journal is damaged.
        """
        chosen = select(FACTS).order_by(FACTS.c.seq).limit(_ROWS_A_READ)
        if run is not None:
            chosen = chosen.where(FACTS.c.run == run)
        if kinds:
            chosen = chosen.where(FACTS.c.kind.in_(kinds))
        complete = run is None and not kinds
        last, done = self._last, 0
        while done < last:
            with self._reporting("read"), self._engine.connect() as connection:
                rows = connection.execute(chosen.where(FACTS.c.seq > done, FACTS.c.seq <= last)).all()
            if complete:
                expected = range(done + 1, done + 1 + len(rows))
                if not rows or [row.seq for row in rows] != list(expected):
                    raise self._damaged(f"facts are missing after number {done}")
            for row in rows:
                yield self._fact(row, leave_out)  # its bulk is loaded now, not with the others'
            done = rows[-1].seq if rows else last

    def outline(self) -> Iterator[Fact]:
        """All facts, without the bytes of updates."""
        return self.read(leave_out=["payload"])

    def sources(self) -> dict[str, str]:
        """Where the task of each run lies on this machine."""
        with self._reporting("read"), self._engine.connect() as connection:
            return {row.run: row.task for row in connection.execute(select(SOURCES))}

    # ------------------------------------------------------------------------------------------ the inside

    def _prepare(self, federation: str) -> None:
        with self._reporting("open"), self._engine.begin() as connection:
            if not inspect(connection).has_table("meta"):
                METADATA.create_all(connection)
                connection.execute(
                    insert(META).values(journal_version=JOURNAL_VERSION, federation=federation)
                )
            found = connection.execute(select(META)).all()
            if len(found) != 1:
                raise self._damaged(f"its table meta has {len(found)} rows instead of one")
            NOTES.create(connection, checkfirst=True)
            if found[0].journal_version in _OLDER:
                connection.execute(update(META).values(journal_version=JOURNAL_VERSION))
            elif found[0].journal_version != JOURNAL_VERSION:
                raise StoreError(
                    f"{self._name} is a journal of version {found[0].journal_version}, this fedmq writes version "
                    f"{JOURNAL_VERSION}: use the fedmq that wrote it, or another state_dir"
                )
            if found[0].federation != federation:
                raise StoreError(
                    f"{self._name} is the journal of the federation {found[0].federation!r}, not {federation!r}: "
                    "correct the name, or use another state_dir"
                )
            edge = select(func.max(FACTS.c.seq), func.min(FACTS.c.at), func.max(FACTS.c.at))
            last, self._first_at, self._last_at = connection.execute(edge).one()
            self._last = last or 0
            self._bulk.prepare(connection, lambda: _named_ahead(connection))

    def _seq_of_private(self, run: str, version: int) -> int:
        chosen = select(FACTS).where(FACTS.c.run == run, FACTS.c.kind == "VersionPublished")
        with self._reporting("read"), self._engine.connect() as connection:
            rows = connection.execute(chosen.order_by(FACTS.c.seq.desc()).limit(_ROWS_A_READ)).all()
        for row in rows:
            fact = self._fact(row, BULKY_FIELDS - {"private"})
            if isinstance(fact, VersionPublished) and fact.version == version and fact.private is not None:
                return int(row.seq)
        raise ValueError(f"version {version} of {run} has no private weights in the journal")

    def _fact(self, row: Row[Any], leave_out: Collection[str]) -> Fact:
        if row.checksum != _checksum(row.kind, row.body, row.beside):
            raise self._damaged(f"fact number {row.seq} is not what was written")
        fact = load(row.kind, row.body)
        if row.beside is None:
            return fact
        with self._reporting("read"), self._engine.connect() as connection:
            found = {
                field: self._beside(connection, row, field, entry)
                for field, entry in msgpack.unpackb(row.beside).items()
                if field not in leave_out
            }
        return fact.model_copy(update=found)

    def _beside(
        self, connection: Connection, row: Row[Any], field: str, entry: Sequence[Any]
    ) -> bytes | Blob | None:
        """The bytes of what a fact holds as such; of everything else, where they lie."""
        ref = BlobRef(size=entry[0], sha256=entry[1])
        where = (entry[2], AHEAD) if len(entry) > _ENTRY else (row.seq, field)
        size = self._bulk.size(connection, *where)
        if size == ref.size:
            blob = StoredBlob(self._bulk, *where, ref)
            if field not in _HELD:
                return blob
            data = blob.read(0, size)
            if hashlib.sha256(data).digest() == ref.sha256:
                return data
        if DROPPABLE.get(row.kind) == field:  # and a kill may have come when a part of it had gone
            known = select(PRUNED.c.before_seq).where(PRUNED.c.run == row.run, PRUNED.c.field == field)
            before = connection.execute(known).scalar()
            if before is not None and row.seq < before:
                return None
        raise self._damaged(f"the {field} of fact number {row.seq} is not what was written")

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"the journal {self._name} is damaged ({what}): restore it from a backup, or move it away to begin anew"
        )

    def _reporting(self, doing: str) -> _Reporting:
        return _Reporting(self, doing)


class _Reporting:
    """Turns the database's errors into a `StoreError` that names the file and the mend."""

    def __init__(self, journal: Journal, doing: str) -> None:
        self._journal = journal
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, SQLAlchemyError):
            return
        cause = error.orig if isinstance(error, DatabaseError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        corrupt = code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
        if corrupt or (isinstance(error, DatabaseError) and not isinstance(error, OperationalError)):
            raise self._journal._damaged(str(cause)) from error  # noqa: SLF001  # its other half
        raise StoreError(f"cannot {self._doing} the journal {self._journal.name}: {cause}") from error


def _drop(connection: Connection, run: str, kind: str, before_seq: int) -> list[tuple[int, str]]:
    """Say that the droppable bulk of a run's facts of one kind is not needed; return where it lies."""
    field = DROPPABLE[kind]
    of_kind = (FACTS.c.run == run, FACTS.c.kind == kind, FACTS.c.seq < before_seq)
    which = (BULK.c.field == field, BULK.c.seq.in_(select(FACTS.c.seq).where(*of_kind)))
    places = [
        (seq, field) for seq in connection.execute(select(BULK.c.seq).distinct().where(*which)).scalars()
    ]
    if kind in _WRITTEN_AHEAD:
        rows = connection.execute(select(FACTS.c.beside).where(*of_kind, FACTS.c.beside.is_not(None)))
        ahead = (BULK.c.field == AHEAD, BULK.c.seq.in_(list(_ahead(rows.scalars(), field))))
        found = connection.execute(select(BULK.c.seq).distinct().where(*ahead)).scalars()
        places += [(seq, AHEAD) for seq in found]
    connection.execute(delete(PRUNED).where(PRUNED.c.run == run, PRUNED.c.field == field))
    connection.execute(insert(PRUNED).values(run=run, field=field, before_seq=before_seq))
    return places


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    """WAL with a full sync: a commit is on disk when it returns, and readers do not wait for the writer."""
    for pragma in (
        f"busy_timeout={_BUSY_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "journal_size_limit=67108864",
    ):
        connection.execute(f"PRAGMA {pragma}")


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


def _ahead(indices: Iterable[bytes], field: str | None = None) -> Iterator[int]:
    """The numbers of what was written ahead, in one field or in all, out of what facts' rows say."""
    for index in indices:
        for name, entry in msgpack.unpackb(index).items():
            if len(entry) > _ENTRY and field in {None, name}:
                yield entry[2]


def _named_ahead(connection: Connection) -> Iterator[int]:
    chosen = select(FACTS.c.beside).where(FACTS.c.kind.in_(_WRITTEN_AHEAD), FACTS.c.beside.is_not(None))
    return _ahead(connection.execute(chosen).scalars())
