"""Transactions on the journal's database: repeated where the connection breaks, and told apart where they fail.

What is done with the database is a function of a connection. It may be called again after the connection was lost, also
when its transaction had been committed and nobody heard of it: so it gives the same whether it has run before or not.
The two databases differ in `store_sqlite` and `store_postgresql` alone.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fedmq_protocol.errors import StoreError

_log = logging.getLogger(__name__)

T = TypeVar("T")

Overtake = Callable[[Connection], None]
"""Fences out whoever writes to a journal, in a transaction of its own or in several."""

WRITES: Final = "fedmq_writes"
"""The execution option of a connection whose transaction is going to write."""

_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 2.0


class AwayError(StoreError):
    """The database is out of reach, and whoever asked cannot wait: it runs an event loop."""


class Fault(enum.Enum):
    """What an error of the database means for who uses it."""

    LOST = "the server is away, or the transaction was undone for another's sake: the same again may go well"
    DAMAGED = "what is stored is not what was written"
    FAILED = "anything else: a full disk, no permission, a wrong password"


class Dialect(Protocol):
    """In what one kind of database differs from the others."""

    name: str
    """The file, or the URL without a password."""

    def connect(self) -> Engine:
        """An engine whose committed transactions are on disk; it begins one that writes as `WRITES` says."""
        ...

    def fault(self, error: SQLAlchemyError, *, connected: bool) -> Fault:
        """What an error means; `connected`: the database had answered well before."""
        ...

    def hold(self, engine: Engine, overtake: Overtake | None) -> None:
        """Keep other coordinators out, or say who is in.

        Args:
            engine: as `connect` made it.
            overtake: end the hold of whoever is in, and let this fence it out; None: leave it in.

        Raises:
            StoreError: somebody else is in.
        """
        ...

    def hold_again(self, engine: Engine) -> None:
        """The connection was lost, and is back, and nobody has fenced us out."""
        ...

    def release(self) -> None:
        """Let others in."""
        ...


class Database:
    """One database. Any thread may use it; those that write take turns.

    Args:
        dialect: which kind it is, and where.
        patience_s: how long a lost connection is tried for again, before that is an error.
    """

    def __init__(self, dialect: Dialect, *, patience_s: float) -> None:
        self.name = dialect.name
        self.engine = dialect.connect()
        self.guard: Callable[[Connection], None] = lambda _: None
        """Called first in each transaction that writes; raises what forbids it."""
        self.losses = 0
        """How often a connection was lost: so often the server may have gone back behind what it had said."""
        self._dialect = dialect
        self._patience_s = patience_s
        self._turn = threading.Lock()
        self._hurried = threading.Event()
        self._connected = False
        self._holds = False
        self._to_hold_again = False
        """A connection was lost, and with it perhaps the hold."""

    def hold(self, overtake: Overtake | None) -> None:
        """Keep other coordinators out until `close`.

        Args:
            overtake: end the hold of another one, and call this to fence it out.

        Raises:
            StoreError: another one is in; the text says which.
        """
        self._repeat("open", lambda: self._dialect.hold(self.engine, overtake))
        self._holds = True

    def close(self) -> None:
        """Let others in, and close all connections."""
        self.hurry()
        self._dialect.release()
        self.engine.dispose()

    def hurry(self) -> None:
        """From now on, do not wait for a connection that is lost."""
        self._hurried.set()

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` finds, in one transaction.

        Raises:
            StoreError: the database fails, or is damaged.
        """
        return self._repeat("read", lambda: self._transact(work, writes=False))

    def write(self, work: Callable[[Connection], T], *, guarded: bool = True, doing: str = "write to") -> T:
        """Let `work` write, in one transaction that is on disk on return; on an error nothing of it is.

        Args:
            work: may be called again, as the module says.
            guarded: call `guard` first.
            doing: for the error's text.

        Raises:
            StoreError: the disk is full, or the database fails otherwise, or is damaged.
        """

        def guarded_work(connection: Connection) -> T:
            self.guard(connection)
            return work(connection)

        with self._turn:
            chosen = guarded_work if guarded else work
            return self._repeat(doing, lambda: self._transact(chosen, writes=True))

    def damaged(self, what: str) -> StoreError:
        """The error for what is stored, but not as it was written."""
        return StoreError(
            f"the journal {self.name} is damaged ({what}): restore it from a backup, or move it away to begin anew"
        )

    def _transact(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        with self.engine.connect().execution_options(**{WRITES: writes}) as connection, connection.begin():
            return work(connection)

    def _repeat(self, doing: str, act: Callable[[], T]) -> T:
        """Do it until it is done, or until patience ends, which begins with the first loss."""
        lost_at = math.inf
        wait_s, losses = _FIRST_WAIT_S, 0
        while True:
            try:
                result = act()
                break
            except UnicodeDecodeError as error:  # SQLite quotes what it cannot read in its own tables
                raise self.damaged(str(error)) from error
            except SQLAlchemyError as error:
                cause = _cause(error)
                match self._dialect.fault(error, connected=self._connected):
                    case Fault.DAMAGED:
                        raise self.damaged(cause) from error
                    case Fault.FAILED:
                        raise StoreError(f"cannot {doing} the journal {self.name}: {cause}") from error
                    case Fault.LOST:
                        self.losses += 1
                        self._to_hold_again = self._holds  # who only looks keeps nobody out
                        now = time.monotonic()
                        lost_at = min(lost_at, now)
                        waited = now - lost_at
                        if _in_a_loop():
                            raise AwayError(f"the journal {self.name} is out of reach: {cause}") from error
                        if waited + wait_s > self._patience_s or self._hurried.is_set():
                            after = f" after {waited:.0f} s of trying" if losses else ""
                            raise StoreError(
                                f"cannot {doing} the journal {self.name}{after}: {cause}"
                            ) from error
                if not losses:
                    _log.warning(
                        "the journal %s: %s; trying again for %.0f s", self.name, cause, self._patience_s
                    )
                losses += 1
                self._hurried.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        self._connected = True
        if losses:
            _log.warning("the journal %s is back after %.1f s", self.name, time.monotonic() - lost_at)
        if self._to_hold_again and not _in_a_loop():
            self._to_hold_again = False
            self._hold_again()
        return result

    def _hold_again(self) -> None:
        """Keep others out as before; whoever has fenced us out meanwhile is in by right."""
        try:
            self._transact(self.guard, writes=True)
        except (SQLAlchemyError, StoreError) as error:
            _log.debug("the hold on %s is not taken again: %s", self.name, error)
        else:
            self._dialect.hold_again(self.engine)


def _in_a_loop() -> bool:
    """Whether this thread runs an event loop, and must not be kept waiting."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _cause(error: SQLAlchemyError) -> str:
    """The driver's own words, in a line."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split())
