"""A copy of a coordinator's folder, made while it works, on which a coordinator can be started.

The journal is copied as it stands at one moment: by SQLite's own backup within one read transaction, which appends go
on beside; out of another database table by table, again in one transaction. The copy's epoch is far ahead, so that
devices and the broker believe whoever is started on it, however often the original was started since, and the original
is sent home. It is read back, every byte of it, before it has its name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, create_engine, func, insert, select, update

from fedmq_coordinator.shell.api_server import TOKEN_FILE
from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_scan import Scan, scan
from fedmq_coordinator.shell.store_schema import BULK, CHECKPOINT_PIECES, FENCE, METADATA
from fedmq_coordinator.shell.store_sqlite import SqliteToRead, url_of
from fedmq_coordinator.shell.store_versions import stamp
from fedmq_protocol.errors import StoreError, UsageError

EPOCHS_AHEAD: Final = 1_000_000
"""More than a coordinator is ever started between a backup and the day it is needed."""

_PAGES_A_STEP: Final = 1024
_ROWS_A_STEP: Final = 64
_PIECES_A_STEP: Final = 4
"""Rows of some megabytes, of which not many should be held at once."""
_PIECES: Final = (BULK, CHECKPOINT_PIECES)
_SPARE_BYTES: Final = 16 * 1024 * 1024

Progress = Callable[[str, int, int], None]
"""Told what is done, how far it is, and of how much."""


@dataclass(frozen=True)
class Backup:
    """What was written.

    Attributes:
        folder: where.
        facts: how many.
        size: bytes of the journal's copy.
        files: the names of what lies beside it.
    """

    folder: Path
    facts: int
    size: int
    files: list[str]


def back_up(
    state_dir: Path,
    folder: Path,
    *,
    key_path: Path,
    settings: DatabaseSettings | None = None,
    progress: Progress,
) -> Backup:
    """Copy a journal, the signing key and the API's token into a new folder of mode 0700.

    Args:
        state_dir: the coordinator's folder.
        folder: does not exist yet, or is empty.
        key_path: of the signing key, wherever it lies.
        settings: where else than in `state_dir` the journal lies.
        progress: is told how far it is.

    Raises:
        UsageError: there is something in the folder, or it cannot be made.
        StoreError: the journal cannot be read, the copy cannot be written, or is not what was read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already, and not empty: name a new folder")
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {folder.absolute().parent} to make {folder.name} in")
    with contextlib.closing(Journal.look(state_dir, settings=settings)) as journal:
        try:
            return _write(journal, state_dir, folder, key_path, progress)
        except OSError as error:
            raise StoreError(f"cannot write the backup {folder}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            raise StoreError(f"cannot write the backup {folder}: {error}") from error


def _write(journal: Journal, state_dir: Path, folder: Path, key_path: Path, progress: Progress) -> Backup:
    parent = folder.absolute().parent
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))  # of mode 0700
    try:
        path = making / "journal.sqlite"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if journal.database.engine.dialect.name == "sqlite":
            _copy_file(state_dir / "journal.sqlite", path, progress)
        else:
            _copy_tables(journal, path, progress)
        _leap(path)
        files = [_copy_secret(source, making / name) for source, name in _secrets(state_dir, key_path)]
        with contextlib.closing(Journal.look(making)) as copy:
            _read_back(copy, progress)
            facts = copy.num_facts
        for rest in making.glob("journal.sqlite-*"):  # empty; looking leaves them
            rest.unlink()
        size = path.stat().st_size
        for each in (*making.iterdir(), making):
            _sync(each)
        making.rename(folder)
        _sync(parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return Backup(folder, facts, size, files)


def _copy_file(source: Path, target: Path, progress: Progress) -> None:
    """Let SQLite copy its file, as it stands now, and leave half of the time to others."""
    room = shutil.disk_usage(target.parent).free
    needed = source.stat().st_size
    if room < needed + _SPARE_BYTES:
        raise StoreError(
            f"the journal has {needed / 1e6:,.0f} MB, and where the backup is to lie {room / 1e6:,.0f} MB are free"
        )
    began = time.monotonic()

    def stepped(_status: int, remaining: int, total: int) -> None:
        nonlocal began
        progress("pages", total - remaining, total)
        time.sleep(min(1.0, time.monotonic() - began))
        began = time.monotonic()

    with (
        contextlib.closing(SqliteToRead(source).open()) as reading,
        contextlib.closing(sqlite3.connect(target)) as writing,
    ):
        reading.execute("BEGIN")  # what is copied is what is there now, whatever comes meanwhile
        reading.execute("SELECT count(*) FROM meta").fetchone()
        reading.backup(writing, pages=_PAGES_A_STEP, progress=stepped)


def _copy_tables(journal: Journal, target: Path, progress: Progress) -> None:
    """Copy every table, as they stand at one moment, into a new file of SQLite."""
    engine = create_engine(url_of(target))
    try:
        with (
            journal.database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as reading,
            reading.begin(),
            engine.begin() as writing,
        ):
            METADATA.create_all(writing)
            stamp(writing)
            tables = METADATA.sorted_tables
            total = sum(
                reading.execute(select(func.count()).select_from(table)).scalar_one() for table in tables
            )
            done = 0
            for table in tables:
                step = min(_ROWS_A_STEP, _PIECES_A_STEP) if table in _PIECES else _ROWS_A_STEP
                rows = reading.execution_options(yield_per=step).execute(select(table)).mappings()
                for part in rows.partitions(step):
                    writing.execute(insert(table), [dict(row) for row in part])
                    done += len(part)
                    progress("rows", done, total)
    finally:
        engine.dispose()


def _leap(path: Path) -> None:
    engine = create_engine(url_of(path))
    try:
        with engine.begin() as connection:
            _move_on(connection)
    finally:
        engine.dispose()


def _move_on(connection: Connection) -> None:
    connection.execute(update(FENCE).values(epoch=FENCE.c.epoch + EPOCHS_AHEAD))


def _secrets(state_dir: Path, key_path: Path) -> list[tuple[Path, str]]:
    """What a coordinator on the copy needs, so that devices and commands go on knowing it."""
    found = [(key_path, "key"), (state_dir / TOKEN_FILE, TOKEN_FILE)]
    return [(source, name) for source, name in found if source.exists()]


def _copy_secret(source: Path, target: Path) -> str:
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(source.read_bytes())
    return target.name


def _read_back(copy: Journal, progress: Progress) -> None:
    found = Scan()
    for done in scan(copy, found):
        progress("facts", done, copy.num_facts)
    if found.findings:
        raise StoreError(
            f"the backup is not what was to be copied: {found.findings[0]}; look with `fedmq store verify`"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def vacuum(state_dir: Path) -> tuple[int, int]:
    """Give back the room in the journal's file that nothing needs; to be called while the folder's lock is held.

    Returns:
        Bytes of the file before and after.

    Raises:
        StoreError: there is no room for the copy that this takes, or the file is damaged.
    """
    path = state_dir / "journal.sqlite"
    before = path.stat().st_size
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise StoreError(
            f"cannot shrink {path}: {error}; it needs as much room again as the journal has"
        ) from error
    return before, path.stat().st_size
