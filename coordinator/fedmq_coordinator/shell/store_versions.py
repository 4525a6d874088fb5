"""Which version a journal is of: a new one is made, an older one is migrated, a newer one is refused."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    String,
    Table,
    delete,
    insert,
    inspect,
    literal_column,
    select,
    update,
)

from fedmq_coordinator.core.facts import JOURNAL_VERSION
from fedmq_coordinator.shell.store_database import Database
from fedmq_coordinator.shell.store_fence import Fence
from fedmq_coordinator.shell.store_schema import META, METADATA
from fedmq_protocol.errors import StoreError

_log = logging.getLogger(__name__)

_REVISIONS: Final = Path(__file__).with_name("migrations")

# Alembic's own table; `meta` has the version that counts.
_STAMP: Final = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def prepare(database: Database, connection: Connection, federation: str) -> None:
    """Make the tables where there are none, or bring them to this version, in the connection's transaction.

    Raises:
        StoreError: of a newer version, of another federation, of something else than fedmq, or damaged.
    """
    if not inspect(connection).has_table("meta"):
        METADATA.create_all(connection)
        connection.execute(
            insert(META).values(
                journal_version=JOURNAL_VERSION, federation=federation, written_by=this_fedmq()
            )
        )
        Fence.make(connection)
        stamp(connection)
        return
    found = look(database, connection)
    if found.federation != federation:
        raise StoreError(
            f"{database.name} is the journal of the federation {found.federation!r}, not {federation!r}: "
            "correct the name, or use another state_dir"
        )
    if found.journal_version < JOURNAL_VERSION:
        _migrate(connection, found.journal_version)
    connection.execute(update(META).values(journal_version=JOURNAL_VERSION, written_by=this_fedmq()))
    if found.journal_version < JOURNAL_VERSION:
        _log.info(
            "the journal %s was of version %d, and is now of version %d",
            database.name,
            found.journal_version,
            JOURNAL_VERSION,
        )


def look(database: Database, connection: Connection) -> Any:  # noqa: ANN401  # three columns
    """The one row of `meta`: `journal_version`, `federation` and `written_by`.

    Raises:
        StoreError: not there, of a newer version, of something else than fedmq, or damaged.
    """
    inspector = inspect(connection)
    if not inspector.has_table("meta"):
        raise StoreError(f"there is no journal in {database.name}: no coordinator has been started there")
    columns = {column["name"] for column in inspector.get_columns("meta")}
    if not {"journal_version", "federation"} <= columns:
        raise StoreError(f"{database.name} holds tables of something else: give fedmq a database of its own")
    found = _meta(database, connection, columns)
    if found.journal_version > JOURNAL_VERSION:
        by = f", written by {found.written_by}" if found.written_by else ""
        raise StoreError(
            f"{database.name} is a journal of version {found.journal_version}{by}; this is {this_fedmq()}, which knows "
            f"versions up to {JOURNAL_VERSION}: use the fedmq that wrote it or a newer one, or another state_dir"
        )
    return found


def this_fedmq() -> str:
    """This program and its version."""
    try:
        return f"fedmq {importlib.metadata.version('fedmq')}"
    except importlib.metadata.PackageNotFoundError:
        return "fedmq"


def _meta(database: Database, connection: Connection, columns: set[str]) -> Any:  # noqa: ANN401  # three columns
    """The one row of `meta`, of whatever version it is."""
    written_by = META.c.written_by if "written_by" in columns else literal_column("''").label("written_by")
    rows = connection.execute(select(META.c.journal_version, META.c.federation, written_by)).all()
    if len(rows) != 1:
        raise database.damaged(f"its table meta has {len(rows)} rows instead of one")
    version = rows[0].journal_version
    if not isinstance(version, int) or version < 1:
        raise database.damaged(f"its version is {version!r}")
    return rows[0]


def _migrate(connection: Connection, version: int) -> None:
    """Run the revisions after `version`; journals from before Alembic are stamped first."""
    from alembic import command  # noqa: PLC0415  # a start that has nothing to migrate does without
    from alembic.config import Config  # noqa: PLC0415

    stamp(connection, version)
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_REVISIONS).replace("%", "%%"))
    command.upgrade(config, revision_of(JOURNAL_VERSION))


def stamp(connection: Connection, version: int = JOURNAL_VERSION) -> None:
    """Write down for Alembic of which version the tables are."""
    _STAMP.create(connection, checkfirst=True)
    connection.execute(delete(_STAMP))
    connection.execute(insert(_STAMP).values(version_num=revision_of(version)))


def revision_of(version: int) -> str:
    """Alembic's name of a version."""
    return f"{version:04d}"
