"""The journal in a database: SQLite in the state folder, or PostgreSQL, through SQLAlchemy Core.

Facts are appended in transactions and never changed. Bytes fields above `BESIDE_BYTES`, and the fields that retention
may drop whatever their size, lie in the table `bulk`, in rows rather than files: one transaction and one fsync hold the
fact and its bytes together (a file each would cost two fsyncs an update, more than a round's own work), no file is left
over when a process dies in between, and the same holds for another database. Bytes of a large model's size are written
ahead of their fact, and read back piece by piece where they are needed (`store_bulk`).

Beside this module: `store_database` repeats what a lost connection undid, `store_sqlite` and `store_postgresql` know
their kind, `store_versions` migrates, `store_fence` keeps two coordinators apart, `store_retention` drops what no
replay needs, `store_rows` knows how a fact becomes a row, and `store_reading` how it comes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select

from fedmq_coordinator.core.facts import JOURNAL_VERSION, EpochBegun, Fact
from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.shell import store_retention, store_versions
from fedmq_coordinator.shell.lock import FolderLock
from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_coordinator.shell.store_bulk import BulkTable, WritingAhead
from fedmq_coordinator.shell.store_checkpoints import Checkpoints
from fedmq_coordinator.shell.store_database import Database
from fedmq_coordinator.shell.store_fence import Fence
from fedmq_coordinator.shell.store_postgresql import Postgresql
from fedmq_coordinator.shell.store_reading import Reader
from fedmq_coordinator.shell.store_retention import Plan
from fedmq_coordinator.shell.store_rows import named_ahead, sizes_ahead, to_rows
from fedmq_coordinator.shell.store_schema import FACTS, NOTES, SOURCES
from fedmq_coordinator.shell.store_sqlite import Sqlite, SqliteToRead
from fedmq_protocol.errors import StoreError

_ROWS_A_READ: Final = 512


_INSERT: Final = insert(FACTS)


class Journal:
    """The journal of one federation. Any thread may read and write ahead; one may append, and one drop.

    Attributes:
        database: for what else lies in it.
        checkpoints: of the state that its facts fold to.
        federation: whose journal it is.
    """

    def __init__(self, database: Database, lock: FolderLock | None) -> None:
        self.database = database
        self.checkpoints = Checkpoints(database)
        self._lock = lock
        self._fence = Fence(database)
        self._bulk = BulkTable(database)
        self._reader = Reader(database, self._bulk)
        self.federation = ""
        self._last = 0
        self._losses = 0
        self._first_at: float | None = None
        self._last_at: float | None = None

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        federation: str,
        settings: DatabaseSettings | None = None,
        take_over: bool = False,
    ) -> Journal:
        """Open the journal of `state_dir`, making it where there is none, and keep others out until `close`.

        An older version of it is migrated first, in one transaction. A new epoch begins, which fences out whoever
        opened it before and is still there, all the same.

        Args:
            state_dir: the coordinator's folder; its lock is taken.
            federation: whose journal it must be.
            settings: where else than in `<state_dir>/journal.sqlite` it lies.
            take_over: let go whoever holds it there; never of the folder.

        Raises:
            StoreError: held by another process, of a newer version or another federation, damaged, or not writable.
        """
        lock = FolderLock(state_dir)
        try:
            dialect = Sqlite(state_dir / "journal.sqlite") if settings is None else Postgresql(settings)
            journal = cls(Database(dialect, patience_s=0.0 if settings is None else settings.timeout_s), lock)
        except BaseException:
            lock.release()
            raise
        try:
            journal.database.hold(journal._fence.overtake if take_over else None)
            journal._prepare(federation)
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def look(cls, state_dir: Path, *, settings: DatabaseSettings | None = None) -> Journal:
        """Open a journal to read it alone, whether or not a coordinator is at work on it: nothing is ever written.

        Args:
            state_dir: the coordinator's folder.
            settings: where else than in `<state_dir>/journal.sqlite` it lies.

        Raises:
            StoreError: there is none, or it is of another version, damaged, or not readable.
        """
        if settings is not None:
            journal = cls(Database(Postgresql(settings, to_read=True), patience_s=settings.timeout_s), None)
        else:
            path = state_dir / "journal.sqlite"
            if not path.is_file():
                raise StoreError(f"there is no journal in {state_dir}: no coordinator has been started there")
            journal = cls(Database(SqliteToRead(path), patience_s=0.0), None)
        try:
            journal.database.read(journal._look)
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def name(self) -> str:
        """The file, or the URL without its password."""
        return self.database.name

    @property
    def epoch(self) -> int:
        """The epoch that began when this journal was opened."""
        return self._fence.epoch

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
        self.database.close()
        if self._lock is not None:
            self._lock.release()

    # ------------------------------------------------------------------------------------------- writing

    def check_fence(self) -> None:
        """See whether this coordinator may still speak.

        Raises:
            FencedError: a newer epoch has begun.
            StoreError: the database fails.
        """
        self.database.write(lambda _: None)

    def append(self, facts: Sequence[Fact]) -> None:
        """Write `facts` in one transaction: on return all of them are on disk, on an error none is.

        Where the connection was lost in between, what is there decides whether they are written (again).

        Raises:
            FencedError: a newer epoch has begun.
            StoreError: the disk is full, or the database fails otherwise.
        """
        if not facts:
            return
        rows, belongings = to_rows(facts, after=self._last)
        epoch = max((fact.epoch for fact in facts if isinstance(fact, EpochBegun)), default=0)
        losses = 0

        def work(connection: Connection) -> None:
            nonlocal losses
            losses = self.database.losses
            if losses != self._losses and self._are_there(connection, rows):
                return
            self._fence.check(connection)
            connection.execute(_INSERT, rows)
            self._bulk.insert(connection, belongings)
            if epoch > self._fence.epoch:
                self._fence.reach(connection, epoch)

        self.database.write(work, guarded=False)
        self._losses = losses
        self._fence.epoch = max(self._fence.epoch, epoch)
        self._last += len(rows)
        self._last_at = facts[-1].at
        if self._first_at is None:
            self._first_at = facts[0].at

    def begin_blob(self) -> WritingAhead:
        """Begin large bytes of a fact that is still to be made; several may be under way, in any threads."""
        return self._bulk.begin()

    def plan(
        self,
        settings: RetentionSettings,
        *,
        best: Mapping[str, int | None],
        now: float,
        run: str | None = None,
    ) -> Plan:
        """What retention would drop now; `drop` drops it.

        Args:
            settings: for how long what nothing needs is kept.
            best: each run's best version; a run that is not in it keeps everything.
            now: seconds since the epoch.
            run: only this one, and nothing that an earlier plan left half done; None: all runs, thoroughly.

        Raises:
            StoreError: the database fails.
        """
        return store_retention.make_plan(self.database, settings, best=best, now=now, run=run)

    def drop(self, plan: Plan) -> None:
        """Carry out a plan. What goes reads back as None, or as bytes that are known and not there, from now on.

        It takes a while, in which others write: the bytes go in transactions of a few pieces.

        Raises:
            StoreError: the database fails; what is gone by then is gone.
        """
        store_retention.carry_out(self.database, self._bulk, plan)

    def remember_source(self, run: str, task: str) -> None:
        """Keep where the task of `run` lies on this machine, for the model host after a restart."""

        def work(connection: Connection) -> None:
            connection.execute(delete(SOURCES).where(SOURCES.c.run == run))
            connection.execute(insert(SOURCES).values(run=run, task=task))

        self.database.write(work)

    def keep_note(self, name: str, data: bytes) -> None:
        """Remember something for the next start that no replay needs."""

        def work(connection: Connection) -> None:
            connection.execute(delete(NOTES).where(NOTES.c.name == name))
            connection.execute(insert(NOTES).values(name=name, data=data))

        self.database.write(work)

    # ------------------------------------------------------------------------------------------- reading

    def note(self, name: str) -> bytes | None:
        """What `keep_note` was given last."""
        chosen = select(NOTES.c.data).where(NOTES.c.name == name)
        return self.database.read(lambda connection: connection.execute(chosen).scalar())

    def read(
        self,
        *,
        after: int = 0,
        run: str | None = None,
        kinds: Collection[str] = (),
        leave_out: Collection[str] = (),
    ) -> Iterator[Fact]:
        """All facts that are there now, in order; none that is appended meanwhile.

        Args:
            after: only facts with larger numbers.
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
        last, done = self._last, after
        while done < last:
            page = chosen.where(FACTS.c.seq > done, FACTS.c.seq <= last)
            rows = self.database.read(lambda connection, page=page: connection.execute(page).all())  # type: ignore[misc]
            if complete:
                expected = range(done + 1, done + 1 + len(rows))
                if not rows or [row.seq for row in rows] != list(expected):
                    raise self.database.damaged(f"facts are missing after number {done}")
            yield from self._reader.facts(rows, leave_out)
            done = rows[-1].seq if rows else last

    def outline(self, after: int = 0) -> Iterator[Fact]:
        """The facts, or those with larger numbers than `after`, that say which snapshots there are, and which steps."""
        return self.read(after=after, kinds=["StepTaken", "VersionPublished"])

    def fetch(self, numbers: Collection[int]) -> dict[int, Fact]:
        """Facts by their numbers, with what lies beside them.

        Raises:
            StoreError: one is not there, or the journal is damaged.
        """
        found: dict[int, Fact] = {}
        wanted = sorted(numbers)
        for start in range(0, len(wanted), _ROWS_A_READ):
            chosen = select(FACTS).where(FACTS.c.seq.in_(wanted[start : start + _ROWS_A_READ]))
            rows = self.database.read(lambda connection, of=chosen: connection.execute(of).all())  # type: ignore[misc]
            found.update(zip((row.seq for row in rows), self._reader.facts(rows, ()), strict=True))
        if len(found) != len(set(numbers)):
            raise self.database.damaged(f"facts of {len(set(numbers))} are missing")
        return found

    def sources(self) -> dict[str, str]:
        """Where the task of each run lies on this machine."""
        return self.database.read(
            lambda connection: {row.run: row.task for row in connection.execute(select(SOURCES))}
        )

    # ------------------------------------------------------------------------------------------ the inside

    def _prepare(self, federation: str) -> None:
        def work(connection: Connection) -> None:
            store_versions.prepare(self.database, connection, federation)
            self.federation = federation
            self._fence.begin(connection)
            self._find_edges(connection)
            self._bulk.prepare(connection, lambda: named_ahead(connection))

        self.database.write(work, guarded=False, doing="open")
        self.database.guard = self._fence.check

    def _look(self, connection: Connection) -> None:
        found = store_versions.look(self.database, connection)
        if found.journal_version < JOURNAL_VERSION:
            raise StoreError(
                f"{self.name} is a journal of version {found.journal_version}: start the coordinator on it once, "
                f"which makes one of version {JOURNAL_VERSION} of it"
            )
        self.federation = found.federation
        self._find_edges(connection)

    def _find_edges(self, connection: Connection) -> None:
        self._last = connection.execute(select(func.max(FACTS.c.seq))).scalar() or 0
        at = select(FACTS.c.at)
        self._first_at = connection.execute(at.order_by(FACTS.c.seq).limit(1)).scalar()
        self._last_at = connection.execute(at.where(FACTS.c.seq == self._last)).scalar()

    def _are_there(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> bool:
        """Whether a transaction of which nobody heard wrote `rows`; one that is still under way is waited for."""
        self._fence.lock(connection)
        known = select(FACTS.c.seq, FACTS.c.at, FACTS.c.checksum).where(FACTS.c.seq >= self._last)
        found = [tuple(row) for row in connection.execute(known.order_by(FACTS.c.seq))]
        if self._last and (not found or found.pop(0)[0] != self._last):
            raise self.database.damaged(
                f"facts up to number {self._last} had been written, and are not there"
            )
        if found[: len(rows)] == [(row["seq"], row["at"], row["checksum"]) for row in rows]:
            return True
        self._bulk.check_ahead(connection, sizes_ahead(row["beside"] for row in rows))
        return False
