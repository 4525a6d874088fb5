"""Whatever retention drops, at whatever moment: the replay gives the same bits, and what is promised can be rebuilt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.blobs import Blob
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.publication import rebuild
from fedmq_coordinator.core.retention import (
    DAY_S,
    Publication,
    RetentionSettings,
    Stretch,
    floor,
    lines,
    needless,
)
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import BlobRef
from tests.coordinator.core.test_resume import act, begin
from tests.coordinator.core.world import SCHEMA, assert_same_bits


def publication(version: int, kind: str = "delta", at: float = 0.0) -> Publication:
    """Version n is fact number 10 n."""
    is_base = kind in {"anchor", "base"}
    return Publication(10 * version, version, at, is_base=is_base, is_anchor=kind == "anchor")


def published(*kinds: str) -> list[Publication]:
    """One version a day."""
    return [publication(number, kind, at=number * DAY_S) for number, kind in enumerate(kinds, 1)]


class TestTheRule:
    def test_the_floor_is_the_newest_anchor_that_is_old_enough(self) -> None:
        versions = published("anchor", "delta", "anchor", "delta", "anchor")
        now = 5 * DAY_S
        for days, expected in ((0, 5), (0.5, 3), (2, 3), (3, 1), (4, 1)):
            found = floor(versions, RetentionSettings(updates_days=days), now=now)
            assert found is not None
            assert found.version == expected
        for days in (4.5, math.inf):
            assert floor(versions, RetentionSettings(updates_days=days), now=now) is None

    def test_a_start_from_a_recipe_is_no_floor(self) -> None:
        assert floor(published("base", "delta"), RetentionSettings(), now=math.inf) is None

    def test_what_waited_in_the_accumulator_is_above_the_line(self) -> None:
        assert lines(publication(7), created=3, last_step=61) == {"private": 70, "payload": 61, "initial": 4}

    @pytest.mark.parametrize(
        ("days", "best", "gone"),
        [
            (0, None, [(10, 20), (30, 40)]),
            (0, 2, [(30, 40)]),
            (0, 3, [(10, 20)]),
            (0, 6, [(10, 20), (30, 40)]),
            (2, None, [(10, 20), (30, 40)]),
            (3, None, [(10, 20)]),
            (5, None, []),
            (math.inf, None, []),
        ],
    )
    def test_old_stretches_go_but_for_the_best_and_the_newest(
        self, days: float, best: int | None, gone: list[tuple[int, int]]
    ) -> None:
        versions = published("anchor", "delta", "anchor", "delta", "anchor", "delta")
        settings = RetentionSettings(versions_days=days)
        found = needless(versions, settings, floor=versions[4], best=best, now=6 * DAY_S)
        assert found == [Stretch(*each) for each in gone]

    def test_whatever_is_not_before_the_floor_stays(self) -> None:
        versions = published("anchor", "anchor", "anchor", "anchor")
        settings = RetentionSettings(versions_days=0)
        assert needless(versions, settings, floor=versions[1], best=None, now=math.inf) == [Stretch(10, 10)]

    def test_a_span_is_no_less_than_none_and_may_be_endless(self) -> None:
        for days in (-1.0, math.nan):
            with pytest.raises(ValueError, match="versions_days"):
                RetentionSettings(versions_days=days)
        assert RetentionSettings(versions_days=math.inf).versions_days == math.inf


class Gone(Blob):
    """What was dropped."""

    def __init__(self, ref: BlobRef) -> None:
        self.ref = ref

    def read(self, start: int, length: int) -> bytes:
        raise StoreError("dropped")


def gone(blob: Blob | None) -> Blob | None:
    return None if blob is None else Gone(blob.ref)


def collected(
    facts: Sequence[f.Fact], retention: RetentionSettings, *, best: int | None, now: float
) -> list[f.Fact]:
    """The journal as retention leaves it."""
    numbered = dict(enumerate(facts, 1))
    versions = [
        Publication(
            seq, fact.version, fact.at, is_base=fact.snapshot is not None, is_anchor=fact.private is not None
        )
        for seq, fact in numbered.items()
        if isinstance(fact, f.VersionPublished)
    ]
    lowest = floor(versions, retention, now=now)
    if lowest is None:
        return list(facts)
    (created,) = [seq for seq, fact in numbered.items() if isinstance(fact, f.RunCreated)]
    steps = [seq for seq, fact in numbered.items() if isinstance(fact, f.StepTaken) and seq < lowest.seq]
    before = lines(lowest, created=created, last_step=max(steps, default=0))
    stretches = needless(versions, retention, floor=lowest, best=best, now=now)
    kept: list[f.Fact] = []
    for seq, fact in numbered.items():
        changes: dict[str, object] = {}
        if isinstance(fact, f.RunCreated) and seq < before["initial"]:
            changes["initial"] = gone(fact.initial)
        if isinstance(fact, f.UpdateAccepted) and seq < before["payload"]:
            changes["payload"] = None
        if isinstance(fact, f.VersionPublished):
            if seq < before["private"]:
                changes["private"] = None
            if any(each.first <= seq <= each.last for each in stretches):
                changes |= {"snapshot": gone(fact.snapshot), "delta": gone(fact.delta)}
        kept.append(fact.model_copy(update=changes))
    return kept


def replayed(facts: Sequence[f.Fact]) -> Coordinator:
    core = Coordinator(federation="home")
    core.state.replay(lambda: facts)
    return core


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["sync", "fedbuff", "fedasync"]),
    seed=st.integers(0, 1000),
    moments=st.sets(st.integers(0, 119), min_size=1, max_size=5),
    versions_days=st.sampled_from([0.0, 1e-4, 1.0, math.inf]),
    updates_days=st.sampled_from([0.0, 1e-4, math.inf]),
    best=st.none() | st.integers(0, 12),
)
def test_at_any_moment_the_replay_gives_the_same_bits_and_what_is_promised_is_there(
    mode: str, seed: int, moments: set[int], versions_days: float, updates_days: float, best: int | None
) -> None:
    world = begin(mode)
    rng = np.random.default_rng(seed)
    run = world.core.runs["r1"]
    replicas = {0: run.model.replica.tobytes()}
    retention = RetentionSettings(versions_days=versions_days, updates_days=updates_days)
    facts: list[f.Fact] = []
    for turn in range(120):
        act(world, int(rng.integers(24)), rng)
        replicas[run.version] = run.model.replica.tobytes()
        facts += [f.load(*each) for each in world.journal[len(facts) :]]
        if turn in moments:
            facts = collected(facts, retention, best=best, now=world.now)
            assert_same_bits(world.core, replayed(facts))
    published = [fact for fact in facts if isinstance(fact, f.VersionPublished)]
    young = {fact.version for fact in published if fact.at > world.now - versions_days * DAY_S}
    for version in {run.version, *young, *({best} & replicas.keys())}:
        if version is not None and version in replicas:
            assert rebuild(SCHEMA, published, version).tobytes() == replicas[version]
    assert_same_bits(world.core, replayed(facts))
