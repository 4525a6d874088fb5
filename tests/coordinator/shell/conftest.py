"""The two kinds of databases that a journal may lie in, for tests of what must hold in both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq_coordinator.shell import store_postgresql
from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_coordinator.shell.store import Journal
from tests.coordinator.shell.places import Place
from tests.postgres_fixtures import PostgresServer


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Place:
    return Place("sqlite", tmp_path / "state", None)


@pytest.fixture
def postgres_place(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    # On a busy machine the server may notice late that a session is over, and lets go of its lock then.
    monkeypatch.setattr(store_postgresql, "_SETTLING_S", 20.0)
    url = postgres.create_database()
    yield Place("postgresql", tmp_path / "state", DatabaseSettings(url=url, timeout_s=60.0))
    postgres.drop_database(url)


@pytest.fixture(params=["sqlite_place", "postgres_place"], ids=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of database in turn."""
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def journal(place: Place) -> Iterator[Journal]:
    """An open one, of each kind of database in turn."""
    opened = place.open()
    yield opened
    opened.close()
