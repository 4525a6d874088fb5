"""Journals that older versions wrote become this version's, to the bit; newer ones are refused; nothing is half done.

`journals/` holds what the code of versions 1 and 2 wrote (runs that are over and one under way, retention at work, and
in version 2 bytes written ahead), and what that code itself made of its own journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import zstandard
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from numpy.typing import NDArray
from sqlalchemy import Connection, create_engine

from fedmq_coordinator.core.facts import JOURNAL_VERSION, EpochBegun
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.shell import store_versions
from fedmq_coordinator.shell.shelf import StoreShelf
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_schema import METADATA
from fedmq_protocol.errors import StoreError

JOURNALS: Final = Path(__file__).with_name("journals")
OLDER: Final = [1, 2]
KEPT: Final = ["facts", "bulk", "pruned", "sources"]
"""Tables of which no row may change."""


def unpack(version: int, folder: Path) -> Path:
    """A state folder with a journal of an older version."""
    path = folder / "journal.sqlite"
    packed = (JOURNALS / f"version-{version}.sqlite.zst").read_bytes()
    path.write_bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 25))
    return path


def dumped(path: Path) -> dict[str, list[Any]]:
    with contextlib.closing(sqlite3.connect(path)) as raw:
        return {table: raw.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in KEPT}


def query(path: Path, text: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        return raw.execute(text).fetchall()


def digest(vector: NDArray[np.float32]) -> str:
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("version", OLDER)
def test_an_older_journal_gives_the_state_that_its_own_code_had(version: int, tmp_path: Path) -> None:
    path = unpack(version, tmp_path)
    before = dumped(path)
    said = json.loads((JOURNALS / f"version-{version}.json").read_text())
    journal = Journal.open(tmp_path, federation="home")
    core = Coordinator(federation="home", shelf=StoreShelf(journal, tmp_path))
    core.state.replay(journal.read, journal.outline)
    assert (core.state.epoch, journal.num_facts) == (said["epoch"], said["num_facts"])
    assert sorted(core.state.devices) == said["devices"]
    assert core.runs.keys() == said["runs"].keys()
    for name, then in said["runs"].items():
        run = core.runs[name]
        assert (run.state, run.version, run.round, run.num_steps) == (
            then["state"],
            then["version"],
            then["round"],
            then["steps"],
        )
        if "weights" in then:
            assert digest(run.model.weights) == then["weights"]
            assert digest(run.model.replica) == then["replica"]
        if "accumulator" in then:
            assert digest(run.accumulator.total()) == then["accumulator"]
            assert run.accumulator.buffer.num_updates == then["buffer"]
    assert journal.epoch == said["epoch"] + 1
    journal.append([EpochBegun(at=2_000_000.0, epoch=journal.epoch)])
    journal.close()
    after = dumped(path)
    assert after.pop("facts")[:-1] == before.pop("facts")
    assert after == before
    assert query(path, "SELECT journal_version, federation, written_by FROM meta") == [
        (JOURNAL_VERSION, "home", store_versions.this_fedmq())
    ]
    Journal.open(tmp_path, federation="home").close()  # and nothing more is to be done


def test_a_journal_of_version_2_from_before_the_notes_gets_them(tmp_path: Path) -> None:
    query(unpack(2, tmp_path), "DROP TABLE notes")
    journal = Journal.open(tmp_path, federation="home")
    journal.keep_note("standing", b"at the broker")
    assert journal.note("standing") == b"at the broker"
    journal.close()


@pytest.mark.parametrize("version", OLDER)
def test_a_migration_that_breaks_off_leaves_the_old_journal(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unpack(version, tmp_path)
    before = query(path, "SELECT sql FROM sqlite_master ORDER BY name"), dumped(path)
    original: Callable[[Connection, int], None] = store_versions._migrate

    def broken_off(connection: Connection, found: int) -> None:
        original(connection, found)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_versions, "_migrate", broken_off)
        with pytest.raises(KeyboardInterrupt):
            Journal.open(tmp_path, federation="home")
    assert (query(path, "SELECT sql FROM sqlite_master ORDER BY name"), dumped(path)) == before
    Journal.open(tmp_path, federation="home").close()


def test_a_newer_journal_is_refused_whatever_its_tables_are(tmp_path: Path) -> None:
    Journal.open(tmp_path, federation="home").close()
    path = tmp_path / "journal.sqlite"
    query(path, "UPDATE meta SET journal_version = 1000, written_by = 'fedmq 7.1'")
    query(path, "DROP TABLE fence")
    with pytest.raises(
        StoreError, match=r"of version 1000, written by fedmq 7\.1; this is .* use the fedmq that"
    ):
        Journal.open(tmp_path, federation="home")
    assert query(path, "SELECT journal_version, written_by FROM meta") == [(1000, "fedmq 7.1")]


def test_an_older_journal_of_another_federation_is_refused_before_it_is_touched(tmp_path: Path) -> None:
    path = unpack(1, tmp_path)
    with pytest.raises(StoreError, match="of the federation 'home', not 'office'"):
        Journal.open(tmp_path, federation="office")
    assert query(path, "SELECT * FROM meta") == [(1, "home")]


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    query(tmp_path / "journal.sqlite", "CREATE TABLE meta (key TEXT, value TEXT)")
    with pytest.raises(StoreError, match="holds tables of something else"):
        Journal.open(tmp_path, federation="home")


def test_migrated_and_new_journals_have_the_same_tables(tmp_path: Path) -> None:
    for kind in ("new", "migrated"):
        (tmp_path / kind).mkdir()
    unpack(1, tmp_path / "migrated")
    for kind in ("new", "migrated"):
        Journal.open(tmp_path / kind, federation="home").close()
        engine = create_engine(f"sqlite:///{tmp_path / kind / 'journal.sqlite'}")
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert context.get_current_revision() == store_versions.revision_of(JOURNAL_VERSION)
            assert compare_metadata(context, METADATA) == []
        engine.dispose()


def test_each_version_has_its_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(store_versions._REVISIONS))
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert revisions == [store_versions.revision_of(version) for version in range(JOURNAL_VERSION, 0, -1)]
