"""A start out of a checkpoint gives what a start from the first fact gives; one that is wrong costs time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from sqlalchemy import Connection

from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.checkpoint import Checkpoint, differs, dump, load
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.core.state import FederationState
from fedmq_coordinator.shell import checkpointing, store_checkpoints
from fedmq_coordinator.shell.checkpointing import Checkpointer
from fedmq_coordinator.shell.resume import Resumed, resume
from fedmq_coordinator.shell.retention import collect
from fedmq_coordinator.shell.shelf import StoreShelf
from fedmq_coordinator.shell.store import Journal
from fedmq_protocol.errors import StoreError
from tests.coordinator.core.test_checkpoint import act, begin, taken
from tests.coordinator.core.world import World

T = TypeVar("T")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with contextlib.closing(Journal.open(tmp_path / "state", federation="home")) as opened:
        yield opened


def write(world: World, journal: Journal) -> None:
    """Append what the world has recorded since; drop what snapshots make needless, as the service does."""
    new = list(world.facts())[journal.num_facts :]
    for start in range(0, len(new), 7):
        journal.append(new[start : start + 7])
    for fact in new:
        if isinstance(fact, f.VersionPublished) and fact.private is not None:
            collect(
                journal,
                RetentionSettings(versions_days=0),
                best={fact.run: None},
                now=world.now,
                run=fact.run,
            )


def keep(world: World, journal: Journal) -> Checkpoint:
    write(world, journal)
    checkpoint = taken(world.core)
    journal.checkpoints.keep(checkpoint.number, checkpoint.pieces())
    return checkpoint


def live(world: World, rng: np.random.Generator, turns: int = 40) -> None:
    for _ in range(turns):
        act(world, int(rng.integers(40)), rng)


def replayed(journal: Journal) -> FederationState:
    state = FederationState()
    state.replay(journal.read, journal.outline)
    return state


def assert_whole(found: Resumed, journal: Journal) -> None:
    one, other = dump(found.state), dump(replayed(journal))
    assert one is not None
    assert other is not None
    assert differs(one, other) is None
    assert found.state.num_facts == journal.num_facts


@pytest.mark.parametrize("mode", ["sync", "fedbuff", "fedasync"])
def test_a_start_folds_what_came_after_the_newest_checkpoint(journal: Journal, mode: str) -> None:
    world, rng = begin(mode), np.random.default_rng(4)
    live(world, rng)
    keep(world, journal)
    live(world, rng)
    second = keep(world, journal)
    assert_whole(resume(journal), journal)
    live(world, rng)
    write(world, journal)
    found = resume(journal)
    assert found.checkpoint is not None
    assert found.checkpoint.number == second.number
    assert found.checkpoint.at == list(world.facts())[second.number - 1].at
    assert found.num_folded == journal.num_facts - second.number > 0
    assert_whole(found, journal)


def test_chunks_of_a_resumed_model_are_those_of_before(journal: Journal, tmp_path: Path) -> None:
    world, rng = begin("sync"), np.random.default_rng(4)
    while world.core.runs["r1"].version < 6:
        act(world, int(rng.integers(24)), rng)
    keep(world, journal)
    core = Coordinator(federation="home", shelf=StoreShelf(journal, tmp_path), state=resume(journal).state)
    one, other = world.core.runs["r1"].model, core.runs["r1"].model
    assert {version: blob.data for version, blob in one.deltas.items()} == {
        version: blob.data for version, blob in other.deltas.items()
    }
    assert one.snapshot.data == other.snapshot.data
    assert one.manifest() == other.manifest()


def test_the_last_two_are_kept(journal: Journal) -> None:
    world, rng = begin("fedbuff"), np.random.default_rng(4)
    numbers = []
    for _ in range(4):
        live(world, rng, 10)
        numbers.append(keep(world, journal).number)
    assert [stored.number for stored in journal.checkpoints.list()] == numbers[:1:-1]
    again = taken(world.core)
    assert journal.checkpoints.keep(again.number, again.pieces()) == len(b"".join(map(bytes, again.pieces())))
    assert [stored.number for stored in journal.checkpoints.list()] == numbers[:1:-1]
    journal.checkpoints.forget()
    assert journal.checkpoints.list() == []
    found = resume(journal)
    assert (found.checkpoint, found.num_folded) == (None, journal.num_facts)


DAMAGE = {
    "a flipped byte": "UPDATE checkpoint_pieces SET data = CAST(X'00' || substr(data, 2) AS BLOB) WHERE {which}",
    "a missing piece": "DELETE FROM checkpoint_pieces WHERE {which}",
    "another journal's": "UPDATE checkpoints SET fact_checksum = fact_checksum + 1 WHERE {which}",
    "newer than the facts": "UPDATE checkpoints SET seq = seq + 100000 WHERE {which}",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    world, rng = begin("fedbuff"), np.random.default_rng(4)
    with contextlib.closing(Journal.open(tmp_path, federation="home")) as journal:
        live(world, rng)
        old = keep(world, journal)
        live(world, rng)
        new = keep(world, journal)
    for which, expected in ((f"seq = {new.number}", old.number), ("1 = 1", None)):
        with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite")) as raw, raw:
            raw.execute(DAMAGE[damage].format(which=which))
        caplog.clear()
        with contextlib.closing(Journal.open(tmp_path, federation="home")) as journal:
            found = resume(journal)
            assert (None if found.checkpoint is None else found.checkpoint.number) == expected
            assert_whole(found, journal)
        assert len(re.findall("checkpoint of fact [0-9]+ is passed over", caplog.text)) == (
            1 if expected else 2
        )


def test_one_of_another_format_is_passed_over(
    journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = begin("fedbuff")
    keep(world, journal)
    monkeypatch.setattr("fedmq_coordinator.core.checkpoint.FORMAT", 99)
    found = resume(journal)
    assert found.checkpoint is None
    assert "written by another fedmq" in caplog.text
    assert_whole(found, journal)


def test_one_with_which_a_start_would_fail_is_passed_over(
    journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, rng = begin("fedbuff"), np.random.default_rng(4)
    keep(world, journal)
    live(world, rng)
    journal.append(list(world.facts())[journal.num_facts :])

    def wrongly(*arguments: Any) -> FederationState:
        state = load(*arguments)
        state.runs["r1"].norms = None  # type: ignore[assignment]
        return state

    monkeypatch.setattr("fedmq_coordinator.shell.resume.load", wrongly)
    found = resume(journal)
    assert found.checkpoint is None
    assert "is passed over: AttributeError" in caplog.text
    assert_whole(found, journal)


def test_one_that_the_later_facts_contradict_is_passed_over(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    world, rng = begin("fedbuff"), np.random.default_rng(4)
    live(world, rng)
    write(world, journal)
    checkpoint = taken(world.core)
    wrong = FederationState()  # knows no run
    wrong.num_facts = checkpoint.number
    forged = dump(wrong)
    assert forged is not None
    journal.checkpoints.keep(forged.number, forged.pieces())
    live(world, rng, 10)
    write(world, journal)
    found = resume(journal)
    assert found.checkpoint is None
    assert "contradicts itself" in caplog.text
    assert_whole(found, journal)


def test_a_kill_between_any_two_transactions_leaves_one_that_reads_or_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves after each transaction of writing one is taken away, and started on."""
    monkeypatch.setattr(store_checkpoints, "_PIECE_BYTES", 700)
    world, rng = begin("sync"), np.random.default_rng(6)
    state = tmp_path / "state"
    copies: list[Path] = []
    with contextlib.closing(Journal.open(state, federation="home")) as journal:
        database, plain_write = journal.database, journal.database.write

        def write_and_copy(work: Callable[[Connection], T]) -> T:
            result = plain_write(work)
            copies.append(shutil.copytree(state, tmp_path / f"copy-{len(copies)}"))
            return result

        numbers = [0]
        for _ in range(3):
            live(world, rng, 30)
            write(world, journal)
            checkpoint = taken(world.core)
            with monkeypatch.context() as patched:
                patched.setattr(database, "write", write_and_copy)
                journal.checkpoints.keep(checkpoint.number, checkpoint.pieces())
            numbers.append(checkpoint.number)
            assert len(copies) > 3
            for copy in copies:
                with contextlib.closing(Journal.open(copy, federation="home")) as cut:
                    found = resume(cut)
                    assert_whole(found, cut)
                    number = 0 if found.checkpoint is None else found.checkpoint.number
                    assert number == numbers[-1 if copy is copies[-1] else -2]
                    keep_after(cut, found)
            copies.clear()
            for copy in tmp_path.glob("copy-*"):
                shutil.rmtree(copy)


def keep_after(journal: Journal, found: Resumed) -> None:
    """The next one after a kill is written over what the kill left, and leaves no pieces that nothing names."""
    journal.append([f.EpochBegun(at=journal.last_at or 0.0, epoch=journal.epoch)])
    found.state.fold(journal.read(after=found.state.num_facts))
    checkpoint = dump(found.state)
    assert checkpoint is not None
    journal.checkpoints.keep(checkpoint.number, checkpoint.pieces())
    named = {stored.number for stored in journal.checkpoints.list()}
    assert (
        journal.database.read(
            lambda connection: set(
                connection.exec_driver_sql("SELECT DISTINCT seq FROM checkpoint_pieces").scalars()
            )
        )
        == named
    )
    assert resume(journal).num_folded == 0


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from fedmq_coordinator.shell import store_checkpoints
from fedmq_coordinator.shell.store import Journal
from tests.coordinator.core.test_checkpoint import begin
from tests.coordinator.shell.test_resume import keep, live

store_checkpoints._PIECE_BYTES = 300
journal = Journal.open(Path(sys.argv[1]), federation="home")
world, rng = begin("fedbuff"), np.random.default_rng(int(sys.argv[2]))
while True:
    live(world, rng, 3)
    while len(world.journal) == journal.num_facts:  # as a coordinator takes none where nothing is new
        live(world, rng, 1)
    print(keep(world, journal).number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_process_that_is_killed_while_it_writes_one_leaves_what_reads(tmp_path: Path, after: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(after)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        known = [int(child.stdout.readline()) for _ in range(after)]
        child.send_signal(signal.SIGKILL)
        known += [int(line) for line in child.stdout]
    with contextlib.closing(Journal.open(tmp_path, federation="home")) as journal:
        found = resume(journal)
        assert found.checkpoint is not None
        assert found.checkpoint.number >= known[-1]
        assert_whole(found, journal)
        keep_after(journal, found)


async def test_they_are_taken_after_so_many_facts_or_so_much_work_and_at_a_good_end(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "EVERY_FACTS", 30)
    world, rng = begin("fedbuff"), np.random.default_rng(6)
    checkpointer = Checkpointer(world.core, journal)

    def is_due() -> bool:
        return checkpointer.due

    def append() -> None:
        new = list(world.facts())[journal.num_facts :]
        journal.append(new)
        checkpointer.facts += len(new)

    append()
    while len(world.journal) < 30:
        assert not is_due()
        act(world, int(rng.integers(24)), rng)
        append()
    assert is_due()
    act(world, 20, rng)
    act(world, 0, rng)
    if world.core.state.num_facts > journal.num_facts:
        assert not checkpointer.take(), "what is not in the journal is not to be in a checkpoint"
        append()
    first = journal.num_facts
    assert checkpointer.take()
    assert not is_due()

    async def numbers() -> list[int]:
        return [stored.number for stored in journal.checkpoints.list()]

    assert checkpointer._writing is not None
    await asyncio.wait([checkpointer._writing])
    assert await numbers() == [first]
    while len(world.journal) == first:
        act(world, int(rng.integers(24)), rng)
    append()
    assert not is_due()
    checkpointer.work_s, checkpointer._cost_s = 0.6, 0.02
    assert is_due(), "a few facts that were much work are as good a reason"
    checkpointer._cost_s = 0.1
    assert not is_due(), "but taking one must be worth it"
    await checkpointer.close(well=True)
    assert await numbers() == [journal.num_facts, first]
    assert_whole(resume(journal), journal)


async def test_a_disk_that_refuses_one_is_said_and_nothing_else_happens(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = begin("fedbuff")
    write(world, journal)
    checkpointer = Checkpointer(world.core, journal, facts=1)

    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(journal.database, "write", full)
        with caplog.at_level(logging.WARNING):
            await checkpointer.close(well=True)
    assert f"no checkpoint of fact {journal.num_facts}: the disk is full" in caplog.text
    assert journal.checkpoints.list() == []


async def test_a_bad_end_takes_none(journal: Journal) -> None:
    world = begin("fedbuff")
    write(world, journal)
    await Checkpointer(world.core, journal, facts=10).close(well=False)
    assert journal.checkpoints.list() == []
