"""`fedmq store`, as its users call it: what it says, its exit code, and that looking changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedmq.cli import run
from fedmq_coordinator.shell import store_rows
from fedmq_coordinator.shell.lock import FolderLock
from fedmq_coordinator.shell.store import Journal
from tests.coordinator.shell.places import Place
from tests.coordinator.shell.test_verifying import grow

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the journal of a run, of which nothing has been dropped."""
    monkeypatch.setattr(store_rows, "BESIDE_BYTES", 33)
    grow(Place("sqlite", tmp_path / "state", None))
    (tmp_path / "state" / "key").write_bytes(b"the key")
    return tmp_path / "state"


@pytest.fixture
def say(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a verb on the journal; returns exit code, output and errors."""

    def say(*arguments: str, at: Path = state_dir) -> tuple[int, str, str]:
        code = run(["store", *arguments, "--state-dir", str(at)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return say


@pytest.fixture
def running(state_dir: Path) -> Iterator[None]:
    """A coordinator holds the folder, and has the journal open."""
    with contextlib.closing(Journal.open(state_dir, federation="home")):
        yield


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file; of SQLite's shared memory and its empty log, only that no byte of the journal is in them."""
    ours = [path for path in folder.iterdir() if not path.name.endswith(("-shm", "-wal"))]
    return {path.name: path.read_bytes() for path in ours}


def test_info(say: Say, state_dir: Path) -> None:
    before = snapshot(state_dir)
    code, out, _ = say("info")
    assert code == 0
    assert "the journal of 'home'" in out
    assert re.search(r"121 facts, from 1970-01-1[1-3] ", out)  # the day depends on the time zone
    assert "newest version 15" in out
    code, out, _ = say("info", "--json")
    told = json.loads(out)
    assert (code, told["num_facts"], told["federation"], told["held_by"]) == (0, 121, "home", None)
    assert told["runs"]["r1"]["state"] == "active"
    assert told["collectable"] > 0
    assert sum(count for count, _ in told["facts"].values()) == 121
    assert snapshot(state_dir) == before


def test_a_dry_run_tells_exactly_what_gc_then_drops(say: Say, state_dir: Path) -> None:
    before = snapshot(state_dir)
    code, would, _ = say("gc", "--dry-run")
    _, as_json, _ = say("gc", "--dry-run", "--json")
    assert code == 0
    assert snapshot(state_dir) == before
    taken = json.loads(say("info", "--json")[1])
    code, did, _ = say("gc")
    assert code == 0
    assert did == would.replace("would drop", "dropped")
    left = json.loads(say("info", "--json")[1])
    gone = sum(size for _, size in taken["beside"].values()) - sum(
        size for _, size in left["beside"].values()
    )
    assert gone == json.loads(as_json)["bytes"] == taken["collectable"] > 0
    assert left["collectable"] == 0
    assert say("gc")[1] == "nothing to drop\n"
    assert say("verify")[0] == 0


def test_settings_decide_what_gc_keeps(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_it = json.loads(say("gc", "--dry-run", "--json")[1])["bytes"]
    monkeypatch.setenv("FEDMQ_COORDINATOR__KEEP_VERSIONS_DAYS", "inf")
    some = json.loads(say("gc", "--dry-run", "--json")[1])
    assert 0 < some["bytes"] < all_of_it
    assert "snapshots" not in {row["what"] for row in some["of"]}
    monkeypatch.setenv("FEDMQ_COORDINATOR__KEEP_UPDATES_DAYS", "inf")
    assert json.loads(say("gc", "--dry-run", "--json")[1]) == {"bytes": 0, "of": []}


def test_verify(say: Say, state_dir: Path) -> None:
    code, out, _ = say("verify")
    assert code == 0
    assert "121 facts" in out
    assert "chained hashes of 16 versions, 16 of them rebuilt" in out
    assert out.endswith("all of it is as it was written\n")
    place = Place("sqlite", state_dir, None)
    ((seq,),) = place.query("SELECT min(seq) FROM bulk WHERE field = 'payload'")
    place.query(f"UPDATE bulk SET data = x'00' WHERE seq = {seq}")
    code, out, _ = say("verify")
    assert code == 1
    assert f"damaged: the payload of fact number {seq} (UpdateAccepted) is not what was written" in out
    code, out, _ = say("verify", "--json")
    assert code == 1
    assert not json.loads(out)["good"]


def test_backup_and_vacuum(say: Say, tmp_path: Path) -> None:
    code, out, _ = say("backup", str(tmp_path / "copy"))
    assert (code, out.startswith(f"{tmp_path / 'copy'}: 121 facts, ")) == (0, True)
    assert ", key; read back whole" in out
    assert say("verify", at=tmp_path / "copy")[0] == 0
    code, _, err = say("backup", str(tmp_path / "copy"))
    assert (code, "not empty" in err) == (1, True)
    say("gc")
    code, out, _ = say("vacuum")
    assert (code, " now\n" in out) == (0, True)
    assert say("verify")[0] == 0


@pytest.mark.usefixtures("running")
def test_beside_a_running_coordinator_one_may_look_and_no_more(say: Say, tmp_path: Path) -> None:
    pid = os.getpid()
    assert f"a coordinator (pid {pid}) is at work on it" in say("info")[1]
    assert json.loads(say("info", "--json")[1])["held_by"] == f"pid {pid}"
    for verb in (["verify"], ["gc", "--dry-run"], ["backup", str(tmp_path / "copy")]):
        assert say(*verb)[0] == 0
    code, _, err = say("gc")
    assert (code, f"pid {pid}" in err, "--dry-run" in err) == (1, True, True)
    code, _, err = say("vacuum")
    assert (code, f"pid {pid}" in err) == (1, True)


@pytest.mark.parametrize("verb", ["info", "gc", "verify", "backup", "vacuum"])
class TestWhatIsWrongIsOneLine:
    def arguments(self, verb: str, folder: Path) -> list[str]:
        return [verb, str(folder / "copy")] if verb == "backup" else [verb]

    def test_no_journal(self, say: Say, verb: str, tmp_path: Path) -> None:
        code, out, err = say(*self.arguments(verb, tmp_path), at=tmp_path / "nowhere")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert f"there is no journal in {tmp_path / 'nowhere'}" in err
        assert not (tmp_path / "nowhere").exists()

    def test_a_newer_journal(self, say: Say, verb: str, state_dir: Path, tmp_path: Path) -> None:
        Place("sqlite", state_dir, None).query(
            "UPDATE meta SET journal_version = 99, written_by = 'fedmq 7.0'"
        )
        code, out, err = say(*self.arguments(verb, tmp_path))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "is a journal of version 99, written by fedmq 7.0" in err

    def test_an_older_journal(self, say: Say, verb: str, state_dir: Path, tmp_path: Path) -> None:
        Place("sqlite", state_dir, None).query("UPDATE meta SET journal_version = 2")
        code, out, err = say(*self.arguments(verb, tmp_path))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "start the coordinator on it once" in err

    def test_something_else(self, say: Say, verb: str, state_dir: Path, tmp_path: Path) -> None:
        for rest in state_dir.glob("journal.sqlite*"):
            rest.unlink()
        (state_dir / "journal.sqlite").write_bytes(b"a diary, with nothing of SQLite in it" * 100)
        code, out, err = say(*self.arguments(verb, tmp_path))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "is damaged" in err
        assert "fedmq: " in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes wherever it likes")
def test_a_folder_that_cannot_be_written_can_be_looked_at(say: Say, state_dir: Path) -> None:
    state_dir.chmod(0o500)
    try:
        assert say("verify")[0] == 0
        assert say("info")[0] == 0
        assert say("gc")[0] == 1
    finally:
        state_dir.chmod(0o700)


def test_a_lock_that_nobody_holds_is_no_coordinator(say: Say, state_dir: Path) -> None:
    lock = FolderLock(state_dir)
    lock.release()
    (state_dir / "lock").write_text("12345\n")
    assert json.loads(say("info", "--json")[1])["held_by"] is None
