"""Where a journal lies in a test."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import create_engine, text

from fedmq_coordinator.core.facts import Fact
from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_postgresql import Postgresql


@dataclass
class Place:
    """Where a journal lies: one that is opened, closed, opened again, and damaged behind its back."""

    kind: Literal["sqlite", "postgresql"]
    state_dir: Path
    settings: DatabaseSettings | None

    @property
    def name(self) -> str:
        """What errors call it."""
        return (
            str(self.state_dir / "journal.sqlite")
            if self.settings is None
            else Postgresql(self.settings).name
        )

    @property
    def elsewhere(self) -> Place:
        """The same database, seen from another state folder; a copy cannot be meant, so PostgreSQL alone."""
        assert self.settings is not None
        return Place(self.kind, self.state_dir.with_name(f"{self.state_dir.name}-other"), self.settings)

    def open(self, *, federation: str = "home", take_over: bool = False) -> Journal:
        return Journal.open(
            self.state_dir, federation=federation, settings=self.settings, take_over=take_over
        )

    def look(self) -> Journal:
        return Journal.look(self.state_dir, settings=self.settings)

    def read(self) -> list[Fact]:
        """All facts, through a journal that is opened for it."""
        journal = self.open()
        try:
            return list(journal.read())
        finally:
            journal.close()

    def query(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement on the database itself."""
        if self.settings is None:
            engine = create_engine(f"sqlite:///{self.state_dir / 'journal.sqlite'}")
        else:
            engine = create_engine(self.settings.url.replace("://", "+psycopg://"))
        try:
            with engine.begin() as connection:
                result = connection.execute(text(statement), parameters)
                return [tuple(row) for row in result] if result.returns_rows else []
        finally:
            engine.dispose()


def opening_process(place: Place, body: str, *, take_over: bool = False) -> subprocess.Popen[bytes]:
    """A process that opens the journal and runs `body` with it."""
    url = None if place.settings is None else place.settings.url
    program = f"""
from pathlib import Path
from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_coordinator.shell.store import Journal
url = {url!r}
settings = None if url is None else DatabaseSettings(url=url, timeout_s=60)
journal = Journal.open(Path({str(place.state_dir)!r}), federation="home", settings=settings, take_over={take_over})
{textwrap.dedent(body)}
"""
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
