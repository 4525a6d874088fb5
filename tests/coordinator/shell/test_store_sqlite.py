"""What only a file can suffer: bits that flip, a disk that is full, a folder that somebody else holds."""

from __future__ import annotations

import contextlib
import random
import re
from pathlib import Path

import pytest

from fedmq_coordinator.core.facts import EpochBegun, Fact
from fedmq_coordinator.shell.backup import back_up
from fedmq_coordinator.shell.store import Journal
from fedmq_protocol.errors import StoreError
from tests.coordinator.shell.places import Place, opening_process
from tests.coordinator.shell.some_facts import accepted, created


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"what is this? " * 1_000)
    with pytest.raises(StoreError, match=r"journal\.sqlite is damaged .*backup"):
        Journal.open(tmp_path, federation="home")


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "a b"])
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    journal = Journal.open(folder, federation="home")
    journal.append([EpochBegun(at=0.0, epoch=1)])
    journal.close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([name, "journal.sqlite", "lock"])
    made = back_up(
        folder, tmp_path / f"{name}-copy", key_path=folder / "key", progress=lambda _what, _done, _of: None
    )
    assert made.facts == 1
    looking = Journal.look(made.folder)
    assert looking.num_facts == 1
    looking.close()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write in the state folder"):
        Journal.open(tmp_path / "file", federation="home")


@pytest.mark.timeout(600)
def test_flipped_bits_anywhere_are_never_read_as_something_else(sqlite_place: Place) -> None:
    chance = random.Random(3)  # the same file each time, so that the same things are flipped
    facts: list[Fact] = [accepted(counter, chance.randbytes(300)) for counter in range(40)]
    journal = sqlite_place.open()
    journal.append(facts)
    journal.close()
    path = sqlite_place.state_dir / "journal.sqlite"
    healthy = path.read_bytes()
    refusals = []
    for place in range(100, len(healthy), 397):
        path.write_bytes(healthy[:place] + bytes([healthy[place] ^ 0x10]) + healthy[place + 1 :])
        try:
            found = sqlite_place.read()
        except StoreError as error:
            refusals.append(str(error))
        else:
            assert found == facts
    assert len(refusals) > 50
    assert all("journal.sqlite" in refusal for refusal in refusals)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE facts SET kind = CAST(kind AS BLOB) WHERE seq = 2",
        "UPDATE facts SET kind = CAST(x'ff' AS TEXT) WHERE seq = 2",
        "UPDATE facts SET body = 'text' WHERE seq = 2",
        "UPDATE facts SET body = 7 WHERE seq = 2",
        "UPDATE facts SET beside = 'text' WHERE seq = 2",
        "UPDATE bulk SET data = 'text'",
        "UPDATE meta SET journal_version = 'x'",
        "UPDATE meta SET journal_version = 0",
        "UPDATE fence SET epoch = x'00'",
    ],
)
def test_a_value_of_another_type_is_damage(sqlite_place: Place, damage: str) -> None:
    """SQLite keeps the type with the value, where a bit may flip."""
    with contextlib.closing(sqlite_place.open()) as journal:
        journal.append([created(), accepted(1, b"x" * 300)])
    sqlite_place.query(damage)
    with pytest.raises(StoreError, match=re.escape(str(sqlite_place.state_dir / "journal.sqlite"))):
        sqlite_place.read()


def test_a_table_that_cannot_be_read_is_damage_whatever_stands_there(sqlite_place: Place) -> None:
    """SQLite quotes the place, which may be no text."""
    sqlite_place.open().close()
    path = sqlite_place.state_dir / "journal.sqlite"
    healthy = path.read_bytes()
    comma = healthy.index(b",", healthy.index(b"CREATE TABLE facts"))
    path.write_bytes(healthy[:comma] + b"\xac" + healthy[comma + 1 :])
    with pytest.raises(StoreError, match=r"journal\.sqlite is damaged"):
        sqlite_place.read()


def test_a_second_coordinator_is_refused_with_the_pid_of_the_first(sqlite_place: Place) -> None:
    holder = opening_process(sqlite_place, "import sys; print('ready', flush=True); sys.stdin.read()")
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        held = rf"another coordinator \(pid {holder.pid}\) holds {re.escape(str(sqlite_place.state_dir))}"
        with pytest.raises(StoreError, match=held):
            sqlite_place.open()
        with pytest.raises(StoreError, match=held):
            sqlite_place.open(take_over=True)  # it can be stopped here, and its folder is not another's
    finally:
        holder.kill()
        holder.communicate()
    sqlite_place.open().close()  # the kernel let go of a killed holder's lock


def test_a_full_disk_is_said_and_nothing_of_the_batch_is_there(sqlite_place: Place) -> None:
    journal = sqlite_place.open()
    journal.append([EpochBegun(at=0.0, epoch=1)])
    with journal.database.engine.begin() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 3}")
    with pytest.raises(StoreError, match=r"cannot write to the journal .*full"):
        journal.append([EpochBegun(at=1.0, epoch=2), created(initial=bytes(500_000))])
    assert list(journal.read()) == [EpochBegun(at=0.0, epoch=1)]
    journal.append([EpochBegun(at=2.0, epoch=3)])
    assert journal.num_facts == 2
    journal.close()
