"""A journal that is as it was written verifies; whatever is changed in it is found, and named by its place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from fedmq_coordinator.core.blobs import Blob
from fedmq_coordinator.core.checkpoint import dump
from fedmq_coordinator.core.facts import UpdateAccepted, VersionPublished, load
from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.shell import store_rows
from fedmq_coordinator.shell.retention import collect
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_rows import _checksum as checksum
from fedmq_coordinator.shell.verifying import Verdict, verify
from tests.coordinator.core.test_resume import act, begin
from tests.coordinator.core.world import World
from tests.coordinator.shell.places import Place

EVERYTHING = RetentionSettings(versions_days=1e9, updates_days=1e9)


@pytest.fixture(autouse=True)
def all_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots and deltas lie beside their facts, as a large model's do; keys and hashes do not."""
    monkeypatch.setattr(store_rows, "BESIDE_BYTES", 33)


@pytest.fixture
def place(sqlite_place: Place) -> Place:
    """Damage is the same in any database, and SQLite is quick."""
    return sqlite_place


@pytest.fixture(params=["sqlite_place", "postgres_place"], ids=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> Place:
    """Each kind of database in turn."""
    found: Place = request.getfixturevalue(request.param)
    return found


def grow(place: Place, *, retention: RetentionSettings = EVERYTHING, turns: int = 120) -> World:
    """A journal of a run with a few snapshots, and two checkpoints."""
    world = begin("fedbuff")
    rng = np.random.default_rng(3)
    with contextlib.closing(place.open()) as journal:
        for turn in range(turns):
            act(world, int(rng.integers(24)), rng)
            journal.append([load(*each) for each in world.journal[journal.num_facts :]])
            if turn in {turns // 2, turns - 7}:
                taken = dump(world.core.state)
                assert taken is not None
                journal.checkpoints.keep(taken.number, taken.pieces())
            collect(journal, retention, best={"r1": None}, now=world.now)
    return world


@contextlib.contextmanager
def looking(place: Place) -> Iterator[Journal]:
    with contextlib.closing(Journal.look(place.state_dir, settings=place.settings)) as journal:
        yield journal


def verified(place: Place) -> Verdict:
    with looking(place) as journal:
        return verify(journal, lambda *_: None)


def first_fact(place: Place, kind: str, where: str = "") -> int:
    found = place.query(f"SELECT min(seq) FROM facts WHERE kind = '{kind}' {where}")
    return int(found[0][0])


def test_a_journal_of_which_everything_is_there(either: Place) -> None:
    world = grow(either)
    verdict = verified(either)
    assert verdict.findings == []
    assert verdict.notes == []
    assert verdict.facts == len(world.journal)
    versions = [fact for fact in world.facts() if isinstance(fact, VersionPublished)]
    assert verdict.versions == verdict.rebuilt == len(versions) > 10
    assert verdict.anchors == sum(fact.private is not None for fact in versions) - 1 > 1
    assert verdict.checkpoints == 2
    assert verdict.dropped == 0
    assert verdict.pieces > sum(isinstance(fact, UpdateAccepted) for fact in world.facts())


def test_one_of_which_retention_has_dropped_what_it_may(either: Place) -> None:
    grow(either, retention=RetentionSettings(versions_days=0))
    verdict = verified(either)
    assert verdict.findings == []
    assert verdict.notes == []
    assert verdict.dropped > 10
    assert 0 < verdict.rebuilt < verdict.versions
    assert verdict.anchors == 0
    assert verdict.checkpoints == 2


def test_a_checkpoint_that_a_newer_one_replaces_meanwhile_is_no_damage(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(place)
    with looking(place) as journal:
        read = journal.checkpoints.read

        def read_slowly(number: int) -> Blob:
            found = read(number)
            place.query(f"DELETE FROM checkpoints WHERE seq <> {number}")
            return found

        monkeypatch.setattr(journal.checkpoints, "read", read_slowly)
        verdict = verify(journal, lambda *_: None)
    assert (verdict.findings, verdict.checkpoints) == ([], 1)


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def flip_column(place: Place, table: str, column: str, where: str) -> None:
    """Flip a bit of the first value that there is."""
    ((value,),) = place.query(f"SELECT {column} FROM {table} WHERE {where}")
    changed = flip(bytes(value)) if isinstance(value, bytes | memoryview) else value + 1
    place.query(f"UPDATE {table} SET {column} = :v WHERE {where}", v=changed)


UPDATE, VERSION, RUN = "UpdateAccepted", "VersionPublished", "RunCreated"


@pytest.mark.parametrize("column", ["body", "beside", "checksum", "at"])
@pytest.mark.parametrize("kind", [UPDATE, VERSION, RUN])
def test_a_changed_fact_is_found(place: Place, kind: str, column: str) -> None:
    grow(place, turns=30)
    seq = first_fact(place, kind, "AND beside IS NOT NULL" if column == "beside" else "")
    flip_column(place, "facts", column, f"seq = {seq}")
    findings = verified(place).findings
    assert any(f"fact number {seq}" in each for each in findings), findings


def test_a_fact_of_another_run_or_kind_is_found(place: Place) -> None:
    grow(place, turns=30)
    seq = first_fact(place, UPDATE)
    for column, value in (("kind", "'StepTaken'"), ("run", "'r2'")):
        before = place.query(f"SELECT {column} FROM facts WHERE seq = {seq}")[0][0]
        place.query(f"UPDATE facts SET {column} = {value} WHERE seq = {seq}")
        assert f"fact number {seq}" in verified(place).findings[0]
        place.query(f"UPDATE facts SET {column} = :v WHERE seq = {seq}", v=before)
    assert verified(place).is_good


def test_a_lost_fact_is_found(place: Place) -> None:
    grow(place, turns=30)
    place.query("DELETE FROM facts WHERE seq = 7")
    assert "facts are missing between number 6 and 8" in verified(place).findings


@pytest.mark.parametrize(
    ("kind", "field"), [(UPDATE, "payload"), (VERSION, "private"), (VERSION, "snapshot"), (VERSION, "delta")]
)
@pytest.mark.parametrize("damage", ["flip", "lose", "move", "rename"])
def test_changed_bytes_beside_a_fact_are_found(place: Place, kind: str, field: str, damage: str) -> None:
    grow(place, turns=40)
    seq = int(place.query(f"SELECT min(seq) FROM bulk WHERE field = '{field}'")[0][0])
    which = f"seq = {seq} AND field = '{field}'"
    match damage:
        case "flip":
            flip_column(place, "bulk", "data", which)
        case "lose":
            place.query(f"DELETE FROM bulk WHERE {which}")
        case "move":
            place.query(f"UPDATE bulk SET piece = 1 WHERE {which}")
        case _:
            place.query(f"UPDATE bulk SET field = 'other' WHERE {which}")
    assert f"the {field} of fact number {seq} ({kind}) is not what was written" in verified(place).findings


def rewrite(place: Place, seq: int, **changes: Any) -> None:
    """Change a fact, and give it the checksum that belongs to it."""
    ((kind, body, beside),) = place.query(f"SELECT kind, body, beside FROM facts WHERE seq = {seq}")
    packed = msgpack.packb(msgpack.unpackb(bytes(body)) | changes)
    place.query(
        f"UPDATE facts SET body = :body, checksum = :sum WHERE seq = {seq}",
        body=packed,
        sum=checksum(kind, packed, None if beside is None else bytes(beside)),
    )


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (VERSION, {"chain_hash": bytes(32)}, "the chained hash of version"),
        (VERSION, {"version": 17}, "comes after version"),
        (UPDATE, {"weight": 0.5}, "do not lead to the weights that were journaled at version"),
        (UPDATE, {"clip": 0.25}, "do not lead to the weights that were journaled at version"),
        ("StepTaken", {"scale": 0.125}, "do not lead to the weights that were journaled at version"),
    ],
)
def test_facts_that_do_not_give_what_was_published_are_found(
    place: Place, kind: str, changes: dict[str, Any], said: str
) -> None:
    """Written by a bug, or by somebody: every checksum is right."""
    grow(place, turns=60)
    rewrite(place, first_fact(place, kind, "AND seq > 12"), **changes)
    findings = verified(place).findings
    assert any(said in each for each in findings), findings


def test_a_snapshot_of_other_weights_is_found(place: Place) -> None:
    grow(place, turns=60)
    seq = first_fact(place, VERSION, "AND seq > 12")
    rows = place.query("SELECT seq FROM facts WHERE kind = 'VersionPublished' ORDER BY seq")
    bases = [s for (s,) in rows if place.query(f"SELECT 1 FROM bulk WHERE seq = {s} AND field = 'snapshot'")]
    seq = bases[1]
    rewrite(place, seq, replica_hash=bytes(32))
    assert any("has another hash than was published" in each for each in verified(place).findings)


def test_a_checkpoint_of_another_state_and_a_damaged_one_are_found(place: Place) -> None:
    world = grow(place)
    ((newest,),) = place.query("SELECT max(seq) FROM checkpoints")
    world.core.runs["r1"].num_accepted += 1  # what a bug would do
    taken = dump(world.core.state)
    assert taken is not None
    with contextlib.closing(place.open()) as journal:
        assert journal.num_facts == taken.number
        journal.checkpoints.keep(taken.number, taken.pieces())
    assert any("leads to another state than the facts" in each for each in verified(place).findings)
    flip_column(place, "checkpoint_pieces", "data", f"seq = {newest} AND piece = 0")
    assert any(f"the checkpoint of fact {newest}" in each for each in verified(place).findings)


@pytest.mark.parametrize("line", ["payload", "private"])
def test_a_record_of_retention_that_would_hide_a_loss_is_found(place: Place, line: str) -> None:
    grow(place, retention=RetentionSettings(versions_days=0))
    place.query(f"UPDATE pruned SET before_seq = 100000 WHERE field = '{line}'")
    assert any("the table pruned says" in each for each in verified(place).findings)


def test_a_newest_version_that_is_said_to_be_dropped_is_found(place: Place) -> None:
    grow(place)
    place.query("INSERT INTO dropped (run, first_seq, last_seq) VALUES ('r1', 1, 100000)")
    place.query("DELETE FROM bulk WHERE field = 'snapshot'")
    assert any("the newest version of r1" in each for each in verified(place).findings)


def test_what_retention_takes_away_meanwhile_is_no_damage(either: Place) -> None:
    """A coordinator publishes a snapshot and drops what it makes needless, while the replay is half done."""
    world = grow(either)
    done: list[int] = []

    def meanwhile(what: str, number: int, _total: int) -> None:
        if what == "replay" and number == 30 and not done:
            done.append(number)
            with contextlib.closing(either.open()) as journal:
                collect(journal, RetentionSettings(versions_days=0), best={"r1": None}, now=world.now)

    with looking(either) as journal:
        verdict = verify(journal, meanwhile)
    assert done
    assert verdict.findings == []
    assert len(verdict.notes) == 1


@pytest.mark.parametrize("moment", [("facts", 1), ("runs", 1), ("replay", 30), ("replay", 0)])
def test_a_coordinator_that_goes_on_far_beyond_what_is_looked_at_is_no_damage(
    either: Place, moment: tuple[str, int]
) -> None:
    """It publishes further snapshots, and with those drops all that the facts that are looked at had beside them."""
    retention = RetentionSettings(versions_days=0)
    world = grow(either, retention=retention, turns=60)
    rng = np.random.default_rng(4)
    begun = len(world.journal)
    done: list[int] = []

    def meanwhile(what: str, number: int, total: int) -> None:
        if not done and what == moment[0] and number >= (moment[1] or total):
            done.append(number)
            with contextlib.closing(either.open()) as journal:
                for _ in range(120):
                    act(world, int(rng.integers(24)), rng)
                journal.append([load(*each) for each in world.journal[journal.num_facts :]])
                collect(journal, retention, best={"r1": None}, now=world.now)

    with looking(either) as journal:
        verdict = verify(journal, meanwhile)
        assert verdict.facts == begun < len(world.journal)
    assert done
    assert verdict.findings == []
    assert any("retention went on meanwhile" in note for note in verdict.notes)
    assert verdict.checkpoints == 0
    assert verified(either).findings == []
