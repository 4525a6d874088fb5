"""A backup is the journal as it stood at one moment, and a coordinator that is started on it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedmq_broker.runner import RunningBroker
from fedmq_coordinator.core.facts import EpochBegun, Fact
from fedmq_coordinator.shell import backup
from fedmq_coordinator.shell.backup import EPOCHS_AHEAD, back_up, vacuum
from fedmq_coordinator.shell.service import HaltedError
from fedmq_coordinator.shell.store import Journal
from fedmq_protocol.errors import StoreError, UsageError
from tests.coordinator.shell.doubles import VirtualDevice, coordinator, eventually
from tests.coordinator.shell.places import Place
from tests.coordinator.shell.some_facts import accepted, created, published, step


def quiet(_what: str, _done: int, _total: int) -> None:
    """Look on."""


def fill(journal: Journal) -> None:
    journal.append([created(), published(0, private=b"p" * 24), accepted(1, os.urandom(70_000)), step()])
    journal.keep_note("standing", b"at the broker")
    journal.remember_source("r", "digits.py")
    journal.checkpoints.keep(4, [b"a checkpoint"])


def facts_in(folder: Path) -> list[Fact]:
    with contextlib.closing(Journal.open(folder, federation="home")) as journal:
        return list(journal.read())


def test_it_holds_all_tables_and_the_secrets_and_nobody_else_can_read_it(
    place: Place, journal: Journal, tmp_path: Path
) -> None:
    fill(journal)
    key = tmp_path / "elsewhere"
    key.write_bytes(b"the key")
    (place.state_dir / "api-token").write_text("the token")
    before = {
        table: place.query(f"SELECT count(*) FROM {table}")
        for table in (
            "facts",
            "bulk",
            "notes",
            "sources",
            "checkpoints",
            "checkpoint_pieces",
            "fence",
            "meta",
        )
    }
    made = back_up(place.state_dir, tmp_path / "copy", key_path=key, settings=place.settings, progress=quiet)
    assert (made.facts, made.files) == (4, ["key", "api-token"])
    assert sorted(path.name for path in made.folder.iterdir()) == ["api-token", "journal.sqlite", "key"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (made.folder / "key").read_bytes() == b"the key"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in made.folder.iterdir()}
    assert (modes, stat.S_IMODE(made.folder.stat().st_mode)) == ({0o600}, 0o700)
    copy = Place("sqlite", made.folder, None)
    assert {table: copy.query(f"SELECT count(*) FROM {table}") for table in before} == before
    assert facts_in(made.folder) == list(journal.read())
    ((epoch,),) = place.query("SELECT epoch FROM fence")
    with contextlib.closing(copy.open()) as opened:
        assert opened.epoch == epoch + EPOCHS_AHEAD + 2
        assert opened.note("standing") == b"at the broker"
        assert opened.sources() == {"r": "digits.py"}


def test_appends_go_on_and_are_not_in_it(
    place: Place, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(journal)
    monkeypatch.setattr(backup, "_PAGES_A_STEP", 4)
    monkeypatch.setattr(backup, "_ROWS_A_STEP", 1)
    before = list(journal.read())
    told: list[tuple[str, int, int]] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        if what != "facts":
            journal.append([accepted(len(told) + 1, b"meanwhile")])

    back_up(
        place.state_dir,
        tmp_path / "copy",
        key_path=tmp_path / "key",
        settings=place.settings,
        progress=meanwhile,
    )
    assert len({step for step in told if step[0] != "facts"}) > 4
    assert facts_in(tmp_path / "copy") == before
    assert len(list(journal.read())) == len(before) + sum(what != "facts" for what, _, _ in told)


def test_it_never_writes_over_anything(journal: Journal, place: Place, tmp_path: Path) -> None:
    fill(journal)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo").touch()
    (tmp_path / "file").touch()
    for name, said in (("full", "not empty"), ("file", "not empty"), ("no/where", "there is no folder")):
        with pytest.raises(UsageError, match=said):
            back_up(
                place.state_dir,
                tmp_path / name,
                key_path=tmp_path / "key",
                settings=place.settings,
                progress=quiet,
            )
    (tmp_path / "empty").mkdir()
    made = back_up(
        place.state_dir,
        tmp_path / "empty",
        key_path=tmp_path / "key",
        settings=place.settings,
        progress=quiet,
    )
    assert made.files == []


def test_a_damaged_journal_gives_no_backup(journal: Journal, place: Place, tmp_path: Path) -> None:
    fill(journal)
    place.query("DELETE FROM bulk WHERE field = 'payload'")
    with pytest.raises(StoreError, match="the payload of fact number 3"):
        back_up(
            place.state_dir,
            tmp_path / "copy",
            key_path=tmp_path / "key",
            settings=place.settings,
            progress=quiet,
        )
    assert not (tmp_path / "copy").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class Usage(NamedTuple):
    total: int = 0
    used: int = 0
    free: int = 1000


def test_too_little_room_is_said_before_anything_is_copied(
    sqlite_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(sqlite_place.open()) as journal:
        fill(journal)

    def usage(_: Any) -> Usage:
        return Usage()

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(StoreError, match="0 MB are free"):
        back_up(sqlite_place.state_dir, tmp_path / "copy", key_path=tmp_path / "key", progress=quiet)
    assert not (tmp_path / "copy").exists()


def test_vacuum_gives_back_what_was_dropped(sqlite_place: Place) -> None:
    with contextlib.closing(sqlite_place.open()) as journal:
        journal.append([created(), accepted(1, os.urandom(2_000_000))])
    sqlite_place.query("DELETE FROM bulk")
    before, after = vacuum(sqlite_place.state_dir)
    assert before - after > 1_900_000
    assert (sqlite_place.state_dir / "journal.sqlite").stat().st_size == after


async def test_a_coordinator_on_the_copy_goes_on_and_the_original_is_sent_home(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    """Copied while it works; the original is even started once more before the copy is."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    # They do not outrun the copy, which they could not follow: these devices do not know how to go back.
    devices = [VirtualDevice(f"dev-{number}", mosquitto.url, waits_at=1) for number in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        for device in devices:
            await stack.enter_async_context(device.online())
        async with coordinator(original, mosquitto.url) as first:
            run = await asyncio.to_thread(first.client.start_run, "find.py")
            await eventually(lambda: asyncio.to_thread(first.client.run, run), lambda view: view.version >= 1)
            await asyncio.to_thread(back_up, original, copy, key_path=first.settings.key_path, progress=quiet)
        copied = facts_in(copy)

        async def overtaken() -> None:
            async with coordinator(original, mosquitto.url) as second:
                await second.connected()
                async with coordinator(copy, mosquitto.url) as third:
                    await asyncio.wait([second.task], timeout=60)
                    for device in devices:
                        device.may_go_on.set()
                    await eventually(
                        lambda: asyncio.to_thread(third.client.run, run),
                        lambda view: view.state == "finished",
                    )

        with pytest.raises(HaltedError, match="has taken over, with epoch 1000"):
            await overtaken()
    after = facts_in(copy)
    known = [(type(fact), fact.at) for fact in copied]  # retention may drop bytes of theirs by now
    assert [(type(fact), fact.at) for fact in after[: len(copied)]] == known
    epochs = [fact.epoch for fact in after if isinstance(fact, EpochBegun)]
    assert epochs[-1] > EPOCHS_AHEAD
