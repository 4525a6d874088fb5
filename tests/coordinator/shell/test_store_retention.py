"""Retention on a real journal: what goes is what the plan said, what stays can be read, and a kill costs nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmq_coordinator.core.blobs import PIECE_BYTES, Blob, MemoryBlob
from fedmq_coordinator.core.facts import (
    Evaluated,
    Fact,
    RunCreated,
    RunEnded,
    StepTaken,
    UpdateAccepted,
    VersionPublished,
    load,
)
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.publication import rebuild
from fedmq_coordinator.core.retention import DAY_S, RetentionSettings
from fedmq_coordinator.shell import store_bulk, store_rows
from fedmq_coordinator.shell.retention import best_versions, collect
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_bulk import DroppedBlob, DroppedError, StoredBlob
from fedmq_coordinator.shell.store_retention import Plan
from fedmq_protocol.errors import StoreError
from tests.coordinator.core.test_resume import act, begin
from tests.coordinator.core.world import SCHEMA, assert_same_bits
from tests.coordinator.shell.places import Place
from tests.coordinator.shell.some_facts import accepted, created, published, step

NOW = 100 * DAY_S
"""Long after the facts below, which are of the first seconds."""
KEEP_VERSIONS = RetentionSettings(versions_days=math.inf)
DROP_VERSIONS = RetentionSettings(versions_days=0)


@pytest.fixture
def all_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots and deltas lie beside their facts, as a large model's do; keys and hashes do not."""
    monkeypatch.setattr(store_rows, "BESIDE_BYTES", 33)


def plan_of(
    journal: Journal, retention: RetentionSettings = KEEP_VERSIONS, best: int | None = None, now: float = NOW
) -> Plan:
    return journal.plan(retention, best={"r": best, "q": None}, now=now)


def bulk_rows(place: Place) -> list[tuple[Any, ...]]:
    return place.query("SELECT seq, field, length(data) FROM bulk ORDER BY seq, field, piece")


def versions_of(facts: Sequence[Fact]) -> list[VersionPublished]:
    return [fact for fact in facts if isinstance(fact, VersionPublished)]


def test_what_a_replay_does_not_need_goes_and_nothing_else(journal: Journal, place: Place) -> None:
    before: list[Fact] = [published(0, private=b"p0" * 12), accepted(1, b"u1"), accepted(2, b"u2"), step()]
    waits_in_the_accumulator = accepted(3, b"u3")
    after: list[Fact] = [published(1, private=b"p1" * 12), accepted(4, b"u4"), step(), published(2)]
    other = accepted(1, b"other", run="q")
    journal.append([created(), *before, waits_in_the_accumulator, *after, other])
    plan = plan_of(journal)
    assert plan.summary() == [("r", "updates' payloads", 2, 4), ("r", "full-precision weights", 1, 24)]
    assert plan.size == 28
    expected: list[Fact] = [
        created(),
        published(0, private=b"p0" * 12).model_copy(update={"private": None}),
        accepted(1, None),
        accepted(2, None),
        step(),
        waits_in_the_accumulator,
        *after,
        other,
    ]
    journal.drop(plan)
    assert list(journal.read()) == expected
    assert plan_of(journal) == Plan()
    journal.close()
    again = place.open()
    assert list(again.read()) == expected
    again.close()


def test_without_private_weights_there_is_nothing_to_replay_from(journal: Journal) -> None:
    journal.append([created(), published(0), accepted(1, b"u1"), step(), published(1)])
    assert plan_of(journal, DROP_VERSIONS) == Plan()


def test_from_snapshot_to_snapshot(journal: Journal) -> None:
    journal.append(
        [created(), published(0, private=b"a"), accepted(1, b"u"), step(), published(1, private=b"b")]
    )
    journal.drop(plan_of(journal))
    journal.append([accepted(2, b"u"), step(), accepted(3, b"v"), published(2, private=b"c")])
    journal.drop(plan_of(journal))
    facts = list(journal.read())
    assert [fact.private for fact in versions_of(facts)] == [None, None, MemoryBlob(b"c")]
    assert [fact.payload for fact in facts if isinstance(fact, UpdateAccepted)] == [None, None, b"v"]


def test_a_longer_span_later_makes_no_gap(journal: Journal) -> None:
    """What is gone does not come back, and the line of what is gone never moves down."""
    journal.append([created(), *(published(version, private=b"p") for version in range(3))])
    journal.drop(plan_of(journal))
    patient = RetentionSettings(updates_days=50)
    for version in range(3, 6):
        journal.append([published(version, private=b"p").model_copy(update={"at": 60 * DAY_S})])
    assert plan_of(journal, patient) == Plan()
    assert [fact.private is None for fact in versions_of(list(journal.read()))] == [True] * 2 + [False] * 4


@pytest.mark.usefixtures("all_beside")
class TestVersions:
    """Snapshots and deltas of stretches that nothing needs."""

    def fill(self, journal: Journal) -> None:
        """Three stretches: 0 1 2, 3 4, 5 6."""
        facts: list[Fact] = [created()]
        for version in range(7):
            facts += [accepted(version, b"u"), step()] if version else []
            facts.append(published(version, private=b"p" * 9 if version in {0, 3, 5} else None))
        journal.append(facts)

    def whole(self, journal: Journal) -> list[int]:
        """The versions of which everything that was published is there."""
        found = []
        for fact in versions_of(list(journal.read())):
            blobs = [blob for blob in (fact.snapshot, fact.delta) if blob is not None]
            if not any(isinstance(blob, DroppedBlob) for blob in blobs):
                assert all(len(blob.data) == blob.ref.size for blob in blobs)
                found.append(fact.version)
        return found

    @pytest.mark.parametrize(
        ("best", "whole"), [(None, [5, 6]), (4, [3, 4, 5, 6]), (1, [0, 1, 2, 5, 6]), (6, [5, 6])]
    )
    def test_old_ones_go_but_for_the_best_and_the_newest(
        self, journal: Journal, best: int | None, whole: list[int]
    ) -> None:
        self.fill(journal)
        journal.drop(plan_of(journal, DROP_VERSIONS, best))
        assert self.whole(journal) == whole
        assert plan_of(journal, DROP_VERSIONS, best) == Plan()

    def test_what_is_gone_still_has_its_size_and_hash_and_says_why_it_cannot_be_read(
        self, journal: Journal
    ) -> None:
        self.fill(journal)
        before = versions_of(list(journal.read()))
        journal.drop(plan_of(journal, DROP_VERSIONS))
        after = versions_of(list(journal.read()))
        assert [(fact.snapshot, fact.delta) for fact in after] == [
            (fact.snapshot, fact.delta) for fact in before
        ]
        assert after[1].delta is not None
        with pytest.raises(DroppedError, match=r"the delta of fact number 5 in .*: retention has dropped it"):
            _ = after[1].delta.data
        assert isinstance(next(journal.read(kinds=["RunCreated"])), RunCreated)

    def test_small_ones_stay_in_their_facts(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_rows, "BESIDE_BYTES", 1000)
        self.fill(journal)
        plan = plan_of(journal, DROP_VERSIONS)
        assert plan.stretches == []
        journal.drop(plan)
        assert self.whole(journal) == list(range(7))

    def test_a_lost_byte_of_what_was_not_dropped_is_damage(self, journal: Journal, place: Place) -> None:
        self.fill(journal)
        journal.drop(plan_of(journal, DROP_VERSIONS, best=1))
        place.query("DELETE FROM bulk WHERE seq = 5 AND field = 'delta'")
        with pytest.raises(StoreError, match="the delta of fact number 5 is not what was written"):
            list(journal.read())


@pytest.mark.parametrize("kill_after", range(9))
def test_a_kill_at_any_moment_costs_nothing_and_the_next_thorough_plan_goes_on(
    journal: Journal, place: Place, kill_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ahead(size: int) -> Blob:
        writing = journal.begin_blob()
        writing.write(os.urandom(size))
        return writing.done()

    for version in range(3):
        fact = published(version, private=b"").model_copy(
            update={"private": ahead(2 * PIECE_BYTES + 5), "snapshot": ahead(PIECE_BYTES + 1)}
        )
        journal.append([*([] if version else [created()]), accepted(version, b"u"), step(), fact])
    original = journal._bulk._remove
    calls: list[list[dict[str, int]]] = []

    def killed(rows: list[dict[str, int]]) -> None:
        if len(calls) >= kill_after:
            raise KeyboardInterrupt
        calls.append(rows)
        original(rows)

    monkeypatch.setattr(store_bulk, "_REMOVED_ROWS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(journal._bulk, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            journal.drop(plan_of(journal, DROP_VERSIONS))
    facts = versions_of(list(journal.read()))
    for fact in facts:  # whole, or known to be gone
        for blob in (fact.private, fact.snapshot):
            assert blob is None or isinstance(blob, DroppedBlob) or len(blob.data) == blob.ref.size
    assert isinstance(facts[2].snapshot, StoredBlob)
    assert isinstance(facts[2].private, StoredBlob)
    journal.close()
    again = place.open()
    assert again.plan(DROP_VERSIONS, best={"r": None}, now=NOW, run="r").going == []
    left = plan_of(again, DROP_VERSIONS)
    assert left.lines == {}
    assert left.going != []
    again.drop(left)
    assert plan_of(again, DROP_VERSIONS) == Plan()
    assert sum(size for _, _, size in bulk_rows(place)) == 3 * PIECE_BYTES + 6
    again.close()


def test_a_dry_run_says_exactly_what_goes(journal: Journal, place: Place, all_beside: None) -> None:
    TestVersions().fill(journal)
    before = bulk_rows(place)
    plan = plan_of(journal, DROP_VERSIONS, best=4)
    assert bulk_rows(place) == before
    assert plan == plan_of(journal, DROP_VERSIONS, best=4)
    journal.drop(plan)
    gone = set(before) - set(bulk_rows(place))
    assert gone == {(*each.place, each.size) for each in plan.going}
    assert len(gone) == len(plan.going)


def test_the_best_version_is_found_in_the_journal(journal: Journal) -> None:
    def evaluated(version: int, loss: float, run: str) -> Evaluated:
        return Evaluated(at=4.0, run=run, version=version, loss=loss, num_examples=5, metrics={})

    ended = RunEnded(at=5.0, run="over", state="finished", reason="", best_version=7)
    judged = [
        accepted(n, b"u", run="federated").model_copy(
            update={
                "evaluation": accepted(0, b"").evaluation.model_copy(  # type: ignore[union-attr]
                    update={"version": n % 3, "metrics": {"accuracy": n / 10}}
                )
            }
        )
        for n in range(5)
    ]
    journal.append([created("central"), created("federated"), created("over"), created("new")])
    journal.append([evaluated(3, 0.9, "central"), evaluated(4, 0.2, "central"), evaluated(5, 0.3, "central")])
    journal.append([*judged, ended])
    assert best_versions(journal) == {"central": 4, "federated": 1, "over": 7, "new": None}


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    mode=st.sampled_from(["sync", "fedbuff", "fedasync"]),
    seed=st.integers(0, 1000),
    moments=st.sets(st.integers(0, 99), min_size=1, max_size=4),
    versions_days=st.sampled_from([0.0, 1e-4, math.inf]),
    updates_days=st.sampled_from([0.0, 1e-4]),
    best=st.none() | st.integers(0, 12),
)
@pytest.mark.usefixtures("all_beside")
@pytest.mark.timeout(600)
def test_after_any_collection_at_any_moment_the_replay_gives_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory,
    mode: str,
    seed: int,
    moments: set[int],
    versions_days: float,
    updates_days: float,
    best: int | None,
) -> None:
    world = begin(mode)
    rng = np.random.default_rng(seed)
    run = world.core.runs["r1"]
    replicas = {0: run.model.replica.tobytes()}
    retention = RetentionSettings(versions_days=versions_days, updates_days=updates_days)
    journal = Journal.open(tmp_path_factory.mktemp("journal"), federation="home")
    for turn in range(100):
        act(world, int(rng.integers(24)), rng)
        replicas[run.version] = run.model.replica.tobytes()
        journal.append([load(*each) for each in world.journal[journal.num_facts :]])
        if turn in moments:
            collect(journal, retention, best={"r1": best}, now=world.now)
            replayed = Coordinator(federation="home")
            replayed.state.replay(journal.read, journal.outline)
            assert_same_bits(world.core, replayed)
    facts = versions_of(list(journal.read()))
    young = {fact.version for fact in facts if fact.at > world.now - versions_days * DAY_S}
    for version in {run.version, *young, *({best} & replicas.keys())} - {None}:
        assert version is not None
        assert rebuild(SCHEMA, facts, version).tobytes() == replicas[version]
    for fact in facts:
        for blob in (fact.snapshot, fact.delta, fact.private):
            if blob is not None and not isinstance(blob, DroppedBlob):
                assert len(blob.data) == blob.ref.size
    steps = sum(isinstance(fact, StepTaken) for fact in journal.read())
    assert steps == run.num_steps
    journal.close()
