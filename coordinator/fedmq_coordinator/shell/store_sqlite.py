"""The journal in a file of the state folder: SQLite, with a log ahead of its pages and a full sync.

Who holds the state folder (`lock`) holds the file: there is nothing more to be held.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from fedmq_coordinator.shell.store_database import WRITES, Fault, Overtake

_BUSY_MS: Final = 10_000


class Sqlite:
    """One file.

    Args:
        path: the file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def connect(self) -> Engine:
        engine = create_engine(url_of(self._path))
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        return engine

    def fault(self, error: SQLAlchemyError, *, connected: bool) -> Fault:  # noqa: ARG002  # a file is never away
        cause = error.orig if isinstance(error, DatabaseError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        corrupt = code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
        if corrupt or (isinstance(error, DatabaseError) and not isinstance(error, OperationalError)):
            return Fault.DAMAGED
        return Fault.FAILED

    def hold(self, engine: Engine, overtake: Overtake | None) -> None:
        """The state folder's lock is enough."""

    def hold_again(self, engine: Engine) -> None:
        """A file is never away."""

    def release(self) -> None:
        """Nothing was held."""


class SqliteToRead(Sqlite):
    """One file that is there, which nobody writes through this.

    It may be in use, or in a folder that cannot be written as long as nobody uses it.
    """

    def connect(self) -> Engine:
        engine = create_engine("sqlite://", creator=self.open, poolclass=QueuePool)
        event.listen(engine, "begin", _begin)
        return engine

    def open(self) -> sqlite3.Connection:
        """A connection of one's own, in which no transaction begins by itself."""
        connection = self._opened("mode=ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except (
            sqlite3.OperationalError
        ):  # the files beside it, which WAL needs, can be neither found nor made
            log = self._path.with_name(f"{self._path.name}-wal")
            if os.access(self._path.parent, os.W_OK) or (log.exists() and log.stat().st_size):
                raise
            connection.close()
            connection = self._opened("immutable=1")
        return connection

    def _opened(self, how: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(self._path))}?{how}", uri=True, check_same_thread=False
        )
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        return connection


def url_of(path: Path) -> URL:
    """What SQLAlchemy calls a file; in a text, `?` and `%` of its name would mean something else."""
    return URL.create("sqlite", database=str(path))


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    """A commit is on disk when it returns, readers do not wait for the writer, and transactions begin when we say."""
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={_BUSY_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "journal_size_limit=67108864",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """A writer has its turn from the first statement on: what it looked at still holds when it writes."""
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
