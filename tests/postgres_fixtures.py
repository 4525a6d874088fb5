"""A PostgreSQL server for tests, out of the system's packages: one a session, a database of its own for each test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import psycopg
import pytest

NO_POSTGRES: Final = "PostgreSQL's server is not installed (apt-get install postgresql)"
_USER: Final = "fedmq"


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps them out of the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    known = shutil.which("initdb")
    candidates = [*reversed(folders), *([] if known is None else [Path(known).resolve().parent])]
    return next((path for path in candidates if (path / "initdb").exists()), None)


class PostgresServer:
    """A server in a temporary folder, on a socket there; not as root, which PostgreSQL refuses."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="fedmq-pg-", dir="/tmp"))  # a socket's path is short
        self._as: list[str] = []
        if os.getuid() == 0:
            name = "postgres" if _exists("postgres") else "nobody"
            user = pwd.getpwnam(name)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._databases = 0
        options = ["--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", *options, "--pgdata", str(self.data))
        # Everybody is let in but the user `guarded`, who needs a password.
        (self.data / "pg_hba.conf").write_text("local all guarded scram-sha-256\nlocal all all trust\n")
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str) -> str:
        return f"postgresql://{_USER}@/{database}?host={self.folder}"

    def start(self) -> None:
        # What a killed server leaves to its log is in the kernel's hands: a test loses nothing without fsync.
        options = (
            f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=60 -c shared_buffers=16MB"
        )
        log = str(self.folder / "log")
        self._control("--log", log, "--options", options, "start")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self._control("--mode", mode, "stop")

    def create_database(self) -> str:
        """A new database; returns its URL."""
        self._databases += 1
        name = f"fedmq_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database, before its files are on disk: all of them at the end would take a minute to delete."""
        name = url.partition("@/")[2].partition("?")[0]
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run a statement as the server's owner, beside all databases."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def _control(self, *arguments: str) -> None:
        """Start or stop it, and wait until that is done, also on a machine that has little time for it."""
        self._run("pg_ctl", "--wait", "--timeout=110", "--pgdata", str(self.data), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as, self._programs / program, *arguments],
            check=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )


def _exists(user: str) -> bool:
    return any(entry.pw_name == user for entry in pwd.getpwall())


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's server; skips where PostgreSQL is not installed. Who stops it, starts it again."""
    programs = find_postgres()
    if programs is None:
        pytest.skip(NO_POSTGRES)
    server = PostgresServer(programs)
    yield server
    server.remove()
