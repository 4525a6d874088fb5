"""The journal in PostgreSQL, for coordinators that may run on one machine today and on another one tomorrow.

The holder has a session with an advisory lock, named after its host and process, so that a second coordinator is
refused with the name of the first. The server lets go of the lock when the session ends, within about a minute when its
machine is gone. The lock is a courtesy; what protects the journal is the fence (`store_fence`).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import threading
import time
import zlib
from typing import Any, Final
from urllib.parse import unquote

from sqlalchemy import URL, Connection, Engine, Row, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_coordinator.shell.store_database import Fault, Overtake
from fedmq_protocol.errors import ConfigError, StoreError, UsageError

_log = logging.getLogger(__name__)

_SESSION: Final = {
    "synchronous_commit": "on",  # a commit is on disk when it returns, whatever the server's default is
    "idle_in_transaction_session_timeout": "10s",  # a coordinator that is stopped does not hold the fence for ever
    "lock_timeout": "30s",
    "tcp_keepalives_idle": "30",  # the server notices in a minute that our machine is gone
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_CLIENT: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 10,  # and we that the server's is
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_LOCK_CLASS: Final = 0x6665646D
"""Sets our advisory locks apart from those of others in the same database."""
_SETTLING_S: Final = 2.0
"""A holder that was killed is gone for the server a moment later."""
_TAKING_S: Final = 10.0
_LOOK_S: Final = 0.05
_NAME: Final = re.compile(r"fedmq (?P<host>\S+) (?P<pid>\d+) [0-9a-f]+")

# What sqlstates mean: https://www.postgresql.org/docs/current/errcodes-appendix.html
_LOST_CLASSES: Final = frozenset({"08", "40"})
_LOST: Final = frozenset({"25P03", "53300", "55P03", "57P01", "57P02", "57P03", "57P05"})
_DAMAGED_CLASSES: Final = frozenset({"23", "XX"})
_PASSING: Final = re.compile(
    "starting up|shutting down|recovery|not yet accepting|too many clients|connection slots"
)
"""In a refusal to connect, which has no sqlstate: it will go over."""

_HOLDER: Final = text(
    "SELECT a.pid, a.application_name AS name, host(a.client_addr) AS address, a.backend_start AS since "
    "FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND l.classid::bigint = :class AND l.objid::bigint = :store"
)
_END: Final = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() AND (pid = :pid OR (application_name = :name AND :name <> ''))"
)


class Postgresql:
    """One schema of one database on a server.

    Args:
        settings: where it is, and how to get in.
        to_read: the server refuses whatever would write.

    Raises:
        ConfigError: the URL does not say where.
        UsageError: psycopg is not installed.
    """

    def __init__(self, settings: DatabaseSettings, *, to_read: bool = False) -> None:
        self._settings = settings
        self._session = _SESSION | ({"default_transaction_read_only": "on"} if to_read else {})
        try:
            self._url = make_url(settings.url).set(drivername="postgresql+psycopg")
        except ArgumentError:
            raise ConfigError("the database must be a URL such as postgresql://user@host/fedmq") from None
        # Made anew, without the password: `set` takes None for "as it is".
        public = URL.create(
            "postgresql",
            username=self._url.username,
            host=self._url.host,
            port=self._url.port,
            database=self._url.database,
            query={key: value for key, value in self._url.query.items() if key in {"host", "port"}},
        )
        self.name = unquote(public.render_as_string())
        self._mine = f"fedmq {socket.gethostname()[:36]} {os.getpid()} {secrets.token_hex(4)}"
        self._held: Connection | None = None
        self._holding = threading.Lock()

    def connect(self) -> Engine:
        try:
            from psycopg import Cursor, ServerCursor, pq  # noqa: PLC0415  # an extra brings it
        except ModuleNotFoundError:
            raise UsageError("PostgreSQL needs psycopg: pip install 'fedmq[postgres]'") from None

        class BinaryCursor(Cursor[Any]):
            """Bytes come as bytes, not as hexadecimal digits: a fifth of the time for a piece of a large model."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # as psycopg likes
                super().__init__(*args, **kwargs)
                self.format = pq.Format.BINARY

        class StreamingCursor(ServerCursor[Any]):
            """SQLAlchemy does not close one whose connection is lost: with that, it has gone, and is no leak."""

            def __del__(self, *warn: Any) -> None:  # noqa: ANN401  # psycopg's own
                if not self.connection.closed:
                    super().__del__(*warn)

        def use_it(connection: Any, _record: object) -> None:  # noqa: ANN401  # psycopg's
            connection.server_cursor_factory = StreamingCursor

        given = dict(self._url.query)
        session = " ".join(f"-c {name}={value}" for name, value in self._session.items())
        own = {name: value for name, value in _CLIENT.items() if name not in given} | {
            "application_name": self._mine,
            "cursor_factory": BinaryCursor,
            "options": f"{session} {given.pop('options', '')}".strip(),  # the user's come last, and win
        }
        engine = create_engine(self._url.set(query=given), connect_args=own)
        event.listen(engine, "do_connect", self._let_in)
        event.listen(engine, "connect", use_it)
        return engine

    def fault(self, error: SQLAlchemyError, *, connected: bool) -> Fault:
        if not isinstance(error, DBAPIError):
            return Fault.FAILED
        state = getattr(error.orig, "sqlstate", None)
        if state is None:  # no answer, or no connection
            if not isinstance(error, OperationalError | InterfaceError):
                return Fault.FAILED
            said = str(error.orig)
            refused = "FATAL:" in said and not _PASSING.search(said)
            return Fault.FAILED if refused and not connected else Fault.LOST
        if state in _LOST or state[:2] in _LOST_CLASSES or error.connection_invalidated:
            return Fault.LOST
        return Fault.DAMAGED if state[:2] in _DAMAGED_CLASSES else Fault.FAILED

    def hold(self, engine: Engine, overtake: Overtake | None) -> None:
        """Have the advisory lock of this schema.

        Raises:
            StoreError: another coordinator has it, and is not to be overtaken, or cannot be.
        """
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            self._take(connection, overtake)
        except BaseException:
            _end(connection)
            raise
        self._held = connection

    def hold_again(self, engine: Engine) -> None:
        """Have the lock again after a lost connection; who has it meanwhile is about to fence us out."""
        with self._holding:
            try:
                if self._held is not None:
                    self._held.exec_driver_sql("SELECT 1")
                    return
            except SQLAlchemyError:
                self.release()
            try:
                self.hold(engine, None)
            except (SQLAlchemyError, StoreError) as error:
                _log.warning("the journal's lock is not ours any more: %s", error)

    def release(self) -> None:
        """Close the session that has the lock."""
        if self._held is not None:
            _end(self._held)
            self._held = None

    def _let_in(self, _dialect: object, _record: object, _args: object, parameters: dict[str, Any]) -> None:
        """Read the password anew for each connection: it may have changed."""
        settings = self._settings
        if settings.password is not None:
            parameters["password"] = settings.password.get_secret_value()
        elif settings.password_file is not None:
            try:
                read = settings.password_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"the database's password_file cannot be read: {error}") from None
            parameters["password"] = read.partition("\n")[0].rstrip("\r")

    def _take(self, connection: Connection, overtake: Overtake | None) -> None:
        schema = str(connection.exec_driver_sql("SELECT current_schema()").scalar())
        place = {"class": _LOCK_CLASS, "store": zlib.crc32(schema.encode()) & 0x7FFFFFFF}
        until = time.monotonic() + (_SETTLING_S if overtake is None else _TAKING_S)
        overtaken = False
        while not connection.execute(text("SELECT pg_try_advisory_lock(:class, :store)"), place).scalar():
            holder = connection.execute(_HOLDER, place).first()
            if holder is not None and holder.name == self._mine:  # a lost session of ours that is still there
                connection.execute(_END, {"pid": holder.pid, "name": ""})
            elif holder is not None and overtake is not None:
                # Its transactions end, then it is fenced out: should it be awake, it must not hold the lock again.
                connection.execute(_END, {"pid": holder.pid, "name": holder.name})
                if not overtaken:
                    _log.warning("taking over %s from %s", self.name, _who(holder))
                    overtake(connection)
                    overtaken = True
            if time.monotonic() > until:
                raise StoreError(
                    f"another coordinator ({_who(holder)}) holds {self.name}: stop it first; where it hangs or cannot "
                    "be reached, --take-over ends its hold"
                    if overtake is None
                    else f"{self.name} could not be taken over from {_who(holder)}"
                )
            time.sleep(_LOOK_S)


def _end(connection: Connection) -> None:
    """Close a connection and its session, rather than keep it for the next who wants one."""
    if not connection.invalidated:
        connection.invalidate()
    connection.close()


def _who(holder: Row[Any] | None) -> str:
    """Who has the lock, for people."""
    if holder is None:
        return "it has just gone"
    named = _NAME.fullmatch(holder.name or "")
    if named is None:
        return f"a session from {holder.address or 'the same machine'}"
    return f"pid {named['pid']} on {named['host']}, since {holder.since:%Y-%m-%d %H:%M}"
