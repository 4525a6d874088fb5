"""The journal, in real databases of each kind: committed is there, damaged is said, dropped is None."""

from __future__ import annotations

import os
import re
import signal

import pytest

from fedmq_coordinator.core.blobs import PIECE_BYTES, Blob, MemoryBlob
from fedmq_coordinator.core.facts import (
    JOURNAL_VERSION,
    EpochBegun,
    Fact,
    RunActivated,
    RunCreated,
    TrafficSeen,
    UpdateAccepted,
    VersionPublished,
)
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_rows import BESIDE_BYTES, BULKY_FIELDS
from fedmq_protocol.errors import StoreError
from tests.coordinator.shell.places import Place, opening_process
from tests.coordinator.shell.some_facts import accepted, created, published, step


def reopened(journal: Journal, place: Place) -> list[Fact]:
    journal.close()
    return place.read()


def test_facts_read_back_as_they_were_written(journal: Journal, place: Place) -> None:
    facts: list[Fact] = [
        EpochBegun(at=0.5, epoch=1),
        created(),
        RunActivated(at=1.5, run="r"),
        published(0, private=b"p" * 24),
        accepted(1, b"small"),
        accepted(2, os.urandom(BESIDE_BYTES + 1)),
        step(),
        TrafficSeen(at=9.0, device="dev-1", sent=1, received=2),
    ]
    journal.append(facts[:3])
    journal.append([])
    journal.append(facts[3:])
    assert list(journal.read()) == facts
    assert (journal.num_facts, journal.first_at, journal.last_at) == (8, 0.5, 9.0)
    assert reopened(journal, place) == facts


def test_an_empty_payload_is_not_a_dropped_one(journal: Journal) -> None:
    journal.append([accepted(1, b""), accepted(2, None)])
    assert [fact.payload for fact in journal.read() if isinstance(fact, UpdateAccepted)] == [b"", None]


def test_bulk_larger_than_a_piece_comes_back_whole(journal: Journal, place: Place) -> None:
    large = os.urandom(2 * PIECE_BYTES + 17)
    journal.append([created(initial=large), published(0, private=large)])
    assert reopened(journal, place) == [created(initial=large), published(0, private=large)]
    pieces = place.query("SELECT length(data) FROM bulk WHERE field = 'initial' ORDER BY piece")
    assert pieces == [(PIECE_BYTES,), (PIECE_BYTES,), (17,)]


def test_the_recipe_of_a_model_of_very_many_tensors_comes_back_as_bytes(journal: Journal) -> None:
    fact = created(initial=b"").model_copy(update={"recipe": bytes(range(251)) * 100})
    journal.append([fact])
    (found,) = journal.read(leave_out=BULKY_FIELDS - {"initial"})
    assert found == fact
    assert isinstance(found, RunCreated)
    assert found.recipe == bytes(range(251)) * 100


def test_many_facts_are_read_in_order_and_none_that_come_meanwhile(journal: Journal) -> None:
    journal.append([EpochBegun(at=float(epoch), epoch=epoch) for epoch in range(2_000)])
    seen = []
    for fact in journal.read():
        assert isinstance(fact, EpochBegun)
        if fact.epoch == 3:
            journal.append([EpochBegun(at=5_000.0, epoch=5_000)])
        seen.append(fact.epoch)
    assert seen == list(range(2_000))
    assert sum(1 for _ in journal.read()) == 2_001


def test_a_run_and_kinds_are_read_by_themselves_and_lightly(journal: Journal) -> None:
    journal.append(
        [created("a"), created("b"), published(0, private=b"x" * 24, run="a"), accepted(1, b"y", run="b")]
    )
    journal.append([EpochBegun(at=0.0, epoch=1)])
    assert [type(fact).__name__ for fact in journal.read(run="a")] == ["RunCreated", "VersionPublished"]
    assert [type(fact).__name__ for fact in journal.read(kinds=["EpochBegun"])] == ["EpochBegun"]
    assert list(journal.read(run="nobody")) == []
    (light,) = journal.read(run="b", kinds=["UpdateAccepted"], leave_out=BULKY_FIELDS)
    assert light == accepted(1, None, run="b")


class TestWrittenAhead:
    """Large bytes go into the database before the fact that names them."""

    SIZE = 2 * PIECE_BYTES + 17

    def blob(self, journal: Journal, seed: bytes) -> Blob:
        writing = journal.begin_blob()
        data = memoryview(os.urandom(1) + seed * (self.SIZE // len(seed)))[: self.SIZE]
        for start in range(0, self.SIZE, 1_000_003):
            writing.write(data[start : start + 1_000_003])
        return writing.done()

    def rows(self, place: Place) -> int:
        return int(place.query("SELECT count(*) FROM bulk")[0][0])

    def test_comes_back_whole_and_in_parts(self, journal: Journal, place: Place) -> None:
        blob = self.blob(journal, b"weights")
        data = blob.data
        assert len(data) == self.SIZE
        assert blob == MemoryBlob(data)
        fact = published(0, private=b"p").model_copy(update={"snapshot": blob})
        journal.append([created(), fact])
        (_, again) = reopened(journal, place)
        assert again == fact
        opened = place.open()
        (found,) = opened.read(kinds=["VersionPublished"])
        assert isinstance(found, VersionPublished)
        assert found.snapshot is not None
        for start, length in ((0, 5), (PIECE_BYTES - 3, 7), (self.SIZE - 4, 100), (1, self.SIZE)):
            assert found.snapshot.read(start, length) == data[start : start + length]
        opened.close()

    def test_small_bytes_stay_with_their_fact(self, journal: Journal, place: Place) -> None:
        writing = journal.begin_blob()
        writing.write(b"small")
        assert isinstance(writing.done(), MemoryBlob)
        assert self.rows(place) == 0

    def test_what_no_fact_names_is_removed_when_the_journal_opens(
        self, journal: Journal, place: Place
    ) -> None:
        kept, lost = self.blob(journal, b"kept"), self.blob(journal, b"lost")
        half = journal.begin_blob()
        half.write(bytes(self.SIZE))  # killed before it was done
        journal.append([published(0, private=b"p").model_copy(update={"snapshot": kept})])
        assert lost.ref.size == self.SIZE
        assert self.rows(place) == 3 + 3 + 2 + 1
        journal.close()
        again = place.open()
        assert self.rows(place) == 3 + 1
        (fact,) = again.read()
        assert isinstance(fact, VersionPublished)
        assert fact.snapshot == kept
        assert len(self.blob(again, b"next").data) == self.SIZE  # its number is a free one
        again.close()

    @pytest.mark.parametrize(
        "damage",
        ["DELETE FROM bulk WHERE piece = 1", "UPDATE bulk SET data = :zeros WHERE piece = 1"],
    )
    def test_damage_is_found_when_it_is_read(self, journal: Journal, place: Place, damage: str) -> None:
        fact = published(0, private=b"p").model_copy(update={"snapshot": self.blob(journal, b"s")})
        journal.append([fact])
        place.query(damage, **({"zeros": bytes(PIECE_BYTES)} if ":zeros" in damage else {}))

        def read() -> None:
            (found,) = journal.read()
            assert isinstance(found, VersionPublished)
            assert found.snapshot is not None
            for _ in found.snapshot.pieces():
                pass

        with pytest.raises(StoreError, match=f"{re.escape(place.name)} is damaged"):
            read()

    def test_others_write_between_two_pieces(self, journal: Journal) -> None:
        writing = journal.begin_blob()
        for epoch in range(5):
            writing.write(bytes(PIECE_BYTES))
            journal.append([EpochBegun(at=float(epoch), epoch=epoch)])
        journal.append([published(0, private=b"p").model_copy(update={"snapshot": writing.done()})])
        assert len(list(journal.read())) == 6


class TestRefusals:
    def test_another_federation(self, journal: Journal, place: Place) -> None:
        journal.close()
        with pytest.raises(
            StoreError,
            match=rf"{re.escape(place.name)} is the journal of the federation 'home', not 'office'",
        ):
            place.open(federation="office")

    def test_another_version(self, journal: Journal, place: Place) -> None:
        journal.close()
        place.query("UPDATE meta SET journal_version = 99")
        with pytest.raises(
            StoreError,
            match=rf"of version 99, written by fedmq .*; this is .*, which knows versions up to {JOURNAL_VERSION}",
        ):
            place.open()

    def test_a_refusal_lets_go_of_the_folder(self, journal: Journal, place: Place) -> None:
        journal.close()
        with pytest.raises(StoreError):
            place.open(federation="office")
        place.open().close()

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            ("UPDATE facts SET body = :zeros WHERE seq = 2", "fact number 2"),
            ("UPDATE facts SET kind = 'RunActivated' WHERE seq = 1", "fact number 1"),
            ("DELETE FROM facts WHERE seq = 2", "missing after number 0"),
            ("DELETE FROM bulk WHERE seq = 3", "the payload of fact number 3"),
            ("UPDATE bulk SET data = :zeros WHERE seq = 3", "the payload of fact number 3"),
            ("DELETE FROM meta", "0 rows instead of one"),
            ("DELETE FROM fence", "0 rows instead of one"),
            ("DROP TABLE facts", "(no such table|does not exist)"),
        ],
    )
    def test_damage_inside(self, journal: Journal, place: Place, damage: str, said: str) -> None:
        journal.append([EpochBegun(at=0.0, epoch=1), created(), accepted(1, b"payload")])
        journal.close()
        place.query(damage, **({"zeros": bytes(7)} if ":zeros" in damage else {}))
        with pytest.raises(StoreError, match=f"{re.escape(place.name)}.*{said}"):
            place.read()


class TestProcesses:
    @pytest.mark.parametrize("kill_after", [1, 7, 40])
    def test_a_writer_killed_at_any_moment_loses_nothing_committed_and_tears_nothing(
        self, place: Place, kill_after: int
    ) -> None:
        body = """
            import itertools, os
            from fedmq_coordinator.core.facts import EpochBegun, VersionPublished
            for batch in itertools.count():
                bulk = bytes([batch % 256]) * 50_000
                version = VersionPublished(at=batch, run="r", version=batch, delta=bulk, snapshot=None, private=bulk,
                                           chain_hash=bytes(32), replica_hash=None)
                journal.append([version, *(EpochBegun(at=batch, epoch=i) for i in range(9))])
                print(batch, flush=True)
        """
        writer = opening_process(place, body)
        assert writer.stdout is not None
        for _ in range(kill_after):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        told = int((writer.stdout.read().splitlines() or [str(kill_after - 1).encode()])[-1])
        writer.communicate()
        journal = place.open()
        facts = list(journal.read())
        journal.close()
        assert len(facts) % 10 == 0  # whole transactions alone
        assert told + 1 <= len(facts) // 10 <= told + 2  # the last one may have been written and not told
        for batch in range(len(facts) // 10):
            version = facts[10 * batch]
            assert isinstance(version, VersionPublished)
            assert version.delta == version.private == MemoryBlob(bytes([batch % 256]) * 50_000)


def test_sources_are_kept_beside_the_facts(journal: Journal, place: Place) -> None:
    journal.remember_source("r", "/tasks/a.py")
    journal.remember_source("r", "/tasks/b.py")
    journal.close()
    again = place.open()
    assert again.sources() == {"r": "/tasks/b.py"}
    again.close()


class TestLooking:
    def test_beside_a_coordinator_that_goes_on_writing(self, journal: Journal, place: Place) -> None:
        journal.append([created(), published(0, private=bytes(BESIDE_BYTES + 1))])
        seen = place.look()
        journal.append([accepted(1, b"u")])
        assert list(seen.read()) == [created(), published(0, private=bytes(BESIDE_BYTES + 1))]
        with pytest.raises(StoreError, match=r"read-?only"):
            seen.keep_note("standing", b"")
        seen.close()
        journal.check_fence()
        assert journal.note("standing") is None

    def test_nothing_is_made_where_there_is_none(self, place: Place) -> None:
        with pytest.raises(StoreError, match="no journal in"):
            place.look()
        journal = place.open()
        assert journal.epoch == 1
        journal.close()
