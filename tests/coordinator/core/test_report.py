"""The report, against journals small enough to work out by hand."""

from __future__ import annotations

from typing import Literal

import pytest

from fedmq_coordinator.core.facts import (
    DeviceEnrolled,
    EpochBegun,
    Evaluated,
    Fact,
    LeaseGranted,
    LeaseReturned,
    RoundOpened,
    RunActivated,
    RunCreated,
    RunEnded,
    StepTaken,
    TrafficSeen,
    UpdateAccepted,
    UpdateRejected,
    VersionPublished,
)
from fedmq_coordinator.core.report import make_report
from fedmq_coordinator.core.settings import RunSettings
from fedmq_protocol.messages import Evaluation, Mode, TaskRef
from fedmq_protocol.schema import TensorEntry, TensorSchema

SCHEMA = TensorSchema(
    entries=(
        TensorEntry(name="w", shape=(10, 10), dtype="float32", role="parameter"),
        TensorEntry(name="mean", shape=(10,), dtype="float32", role="buffer"),
    )
)


def created(run: str = "r", mode: Mode = "sync") -> RunCreated:
    return RunCreated(
        at=0.0,
        run=run,
        settings=RunSettings(mode=mode),
        task=TaskRef(name="t", version="1", schema_hash=SCHEMA.hash),
        tensor_schema=SCHEMA,
        initial=b"",
        has_central_data=True,
    )


def begun(run: str = "r", mode: Mode = "sync", at: float = 1.0) -> list[Fact]:
    return [created(run, mode), RunActivated(at=at, run=run), published(0, at, run)]


def published(version: int, at: float, run: str = "r") -> VersionPublished:
    return VersionPublished(
        at=at,
        run=run,
        version=version,
        delta=b"",
        snapshot=None,
        private=None,
        chain_hash=bytes(32),
        replica_hash=None,
    )


def opened(number: int, at: float, *devices: str, run: str = "r") -> RoundOpened:
    return RoundOpened(
        at=at,
        run=run,
        round=number,
        version=number - 1,
        lease=number,
        devices=list(devices),
        goal=len(devices),
        lease_expires_at=at + 60,
    )


def accepted(
    device: str,
    at: float,
    lease: int,
    *,
    run: str = "r",
    staleness: int = 0,
    traffic: tuple[int, int] | None = None,
    evaluation: Evaluation | None = None,
    duration_s: float | None = 1.5,
) -> UpdateAccepted:
    return UpdateAccepted(
        at=at,
        run=run,
        device=device,
        counter=lease,
        lease=lease,
        base_version=0,
        staleness=staleness,
        weight=0.5,
        clip=1.0,
        norm=1.0,
        num_examples=10,
        duration_s=duration_s,
        train_s=0.5,
        payload=None,
        metrics={},
        evaluation=evaluation,
        traffic=traffic,
    )


def step(
    number: int, at: float, updates: int, why: Literal["all", "deadline", "buffer"] = "all", run: str = "r"
) -> StepTaken:
    return StepTaken(at=at, run=run, round=number, scale=1.0, num_updates=updates, closed_by=why)


def evaluated(version: int, accuracy: float, loss: float) -> Evaluated:
    return Evaluated(
        at=99.0, run="r", version=version, loss=loss, num_examples=50, metrics={"accuracy": accuracy}
    )


def two_rounds() -> list[Fact]:
    """Two devices; b is late in round 1, and its update counts in round 2."""
    return [
        EpochBegun(at=0.0, epoch=1),
        DeviceEnrolled(at=0.0, device="a", public_key=b""),
        *begun(),
        evaluated(0, 0.1, 2.3),
        opened(1, 10.0, "a", "b"),
        accepted("a", 11.0, 1),
        step(1, 12.0, 1, "deadline"),
        published(1, 12.0),
        opened(2, 12.0, "a"),
        accepted("b", 13.0, 1, staleness=1),
        accepted("a", 13.5, 2),
        evaluated(1, 0.5, 1.2),
        step(2, 14.0, 2),
        published(2, 14.0),
        evaluated(2, 0.7, 0.9),
        RunEnded(at=15.0, run="r", state="finished", reason="all 2 rounds are done", best_version=2),
    ]


def test_rows_are_rounds_and_their_accuracy_is_that_of_the_version_that_they_end_with() -> None:
    report = make_report("r", two_rounds())
    assert [(row.round, row.version, row.opened_at, row.closed_at, row.seconds) for row in report.rounds] == [
        (1, 1, 10.0, 12.0, 2.0),
        (2, 2, 12.0, 14.0, 2.0),
    ]
    assert [(row.accuracy, row.loss) for row in report.rounds] == [(0.5, 1.2), (0.7, 0.9)]
    assert (report.initial_accuracy, report.initial_loss) == (0.1, 2.3)
    assert [(row.participants, row.leases, row.on_time, row.participation) for row in report.rounds] == [
        (["a"], 2, 1, 0.5),
        (["a", "b"], 1, 1, 1.0),
    ]
    assert [(row.goal, row.closed_by, row.steps) for row in report.rounds] == [
        (2, "deadline", 1),
        (1, "all", 1),
    ]
    assert (report.state, report.reason, report.best_version) == ("finished", "all 2 rounds are done", 2)
    assert (report.num_parameters, report.size) == (100, 110)


def test_totals_count_leases_updates_and_staleness() -> None:
    totals = make_report("r", two_rounds()).totals
    assert (totals.leases, totals.updates_accepted, totals.updates_used) == (3, 3, 3)
    assert totals.participation_rate == 1.0
    assert totals.staleness == {0: 2, 1: 1}
    assert totals.seconds == 4.0  # from the first lease, not from when nobody was there yet
    assert (totals.float32_bytes_up, totals.float32_bytes_down) == (3 * 440, 3 * 440)


def test_updates_begin_with_their_lease() -> None:
    updates = make_report("r", two_rounds()).updates
    assert [(u.device, u.start, u.end, u.round, u.staleness) for u in updates] == [
        ("a", 10.0, 11.0, 1, 0),
        ("b", 10.0, 13.0, 2, 1),
        ("a", 12.0, 13.5, 2, 0),
    ]


@pytest.mark.parametrize(("duration_s", "start"), [(1.5, 11.5), (None, 12.5)])
def test_an_update_under_a_lease_by_rule_begins_by_its_own_word(
    duration_s: float | None, start: float
) -> None:
    facts = [
        *begun(),
        opened(1, 10.0),
        accepted("c", 13.0, 1, duration_s=duration_s),
        step(1, 14, 1),
        published(1, 14),
    ]
    assert make_report("r", facts).updates[0].start == start


def test_federated_figures_are_weighted_by_examples_and_belong_to_the_version_that_was_measured() -> None:
    facts = two_rounds()
    for place, evaluation in [
        (7, Evaluation(version=0, num_examples=1, loss=9.0)),
        (11, Evaluation(version=1, num_examples=30, loss=1.0, metrics={"accuracy": 0.4})),
        (12, Evaluation(version=1, num_examples=10, loss=2.0, metrics={"accuracy": 0.8})),
    ]:
        fact = facts[place]
        facts[place] = fact.model_copy(update={"evaluation": evaluation})
    first, second = make_report("r", facts).rounds
    assert first.federated_accuracy == pytest.approx(0.5)
    assert first.federated_loss == pytest.approx(1.25)
    assert (second.federated_accuracy, second.federated_loss) == (None, None)


def test_leases_that_end_otherwise_and_refusals_are_counted_by_reason() -> None:
    refusal = UpdateRejected(
        at=3.0, run="r", device="a", counter=1, lease=1, reason="norm", detail="", residual="discard"
    )
    facts: list[Fact] = [
        *begun(),
        opened(1, 2.0, "a", "b", "c", "d"),
        refusal,
        refusal.model_copy(update={"reason": "too-old"}),
        refusal,
        LeaseReturned(at=4.0, run="r", device="c", lease=1, why="expired"),
        accepted("d", 5.0, 1),
        step(1, 6.0, 1),
        published(1, 6.0),
    ]
    totals = make_report("r", facts).totals
    assert totals.rejected == {"norm": 2, "too-old": 1}
    assert totals.leases_returned == {"expired": 1}
    assert totals.participation_rate == 0.25


def test_rows_of_asynchronous_runs_follow_each_other_without_gaps() -> None:
    def lease(device: str, number: int, at: float) -> LeaseGranted:
        return LeaseGranted(at=at, run="r", device=device, lease=number, version=0, lease_expires_at=at + 60)

    facts: list[Fact] = [
        *begun(mode="fedbuff"),
        lease("a", 1, 5.0),
        lease("b", 2, 6.0),
        accepted("a", 7.0, 1),
        accepted("b", 7.5, 2),
        step(0, 7.5, 2, "buffer"),
        lease("a", 3, 7.5),
        accepted("a", 8.0, 3),
        step(0, 8.0, 1, "buffer"),
        published(1, 8.0),
        lease("b", 4, 9.0),
        accepted("b", 10.0, 4, staleness=1),
        step(1, 10.0, 1, "buffer"),
        published(2, 10.0),
    ]
    report = make_report("r", facts)
    assert [(row.opened_at, row.closed_at, row.steps) for row in report.rounds] == [
        (5.0, 8.0, 2),
        (8.0, 10.0, 1),
    ]
    assert [row.participants for row in report.rounds] == [["a", "b"], ["b"]]
    assert report.state == "active"


class TestTraffic:
    def test_is_the_growth_of_counters_and_what_was_sent_belongs_to_the_row_of_the_word_before(self) -> None:
        facts: list[Fact] = [
            *begun(),
            opened(1, 2.0, "a"),
            accepted("a", 3.0, 1, traffic=(100, 5_000)),  # connecting, and the first download
            step(1, 4.0, 1),
            published(1, 4.0),
            opened(2, 4.0, "a"),
            accepted("a", 5.0, 2, traffic=(400, 5_600)),  # the first update, and the second version
            step(2, 6.0, 1),
            published(2, 6.0),
            RunEnded(at=6.0, run="r", state="finished", reason="", best_version=None),
            TrafficSeen(
                at=9.0, device="a", sent=750, received=5_900
            ),  # the second update, and the last version
        ]
        report = make_report("r", facts)
        assert [(row.bytes_up, row.bytes_down) for row in report.rounds] == [(400, 5_000), (350, 900)]
        assert (report.totals.bytes_up, report.totals.bytes_down) == (750, 5_900)
        assert [row.moved for row in report.rounds] == [{"a": (400, 5_000)}, {"a": (350, 900)}]
        assert report.totals.moved == {"a": (750, 5_900)}
        assert report.totals.compression_ratio == pytest.approx((2 * 440 + 2 * 440) / (750 + 5_900))

    def test_of_a_restarted_agent_begins_anew(self) -> None:
        facts: list[Fact] = [
            *begun(),
            opened(1, 2.0, "a"),
            accepted("a", 3.0, 1, traffic=(100, 1_000)),
            step(1, 4.0, 1),
            published(1, 4.0),
            opened(2, 4.0, "a"),
            accepted("a", 5.0, 2, traffic=(70, 300)),
            step(2, 6.0, 1),
            published(2, 6.0),
        ]
        totals = make_report("r", facts).totals
        assert (totals.bytes_up, totals.bytes_down) == (170, 1_300)

    def test_of_other_runs_is_not_this_ones(self) -> None:
        def run(name: str, at: float, traffic: tuple[int, int]) -> list[Fact]:
            return [
                *begun(name, at=at),
                opened(1, at, "a", run=name),
                accepted("a", at + 1, 1, run=name, traffic=traffic),
                step(1, at + 2, 1, run=name),
                published(1, at + 2, name),
                RunEnded(at=at + 2, run=name, state="finished", reason="", best_version=None),
            ]

        facts = [
            *run("one", 10, (100, 1_000)),
            *run("two", 20, (250, 1_700)),
            TrafficSeen(at=25, device="a", sent=300, received=1_800),
            *run("three", 30, (310, 1_900)),
        ]
        totals = [make_report(name, facts).totals for name in ("one", "two", "three")]
        assert [(each.bytes_up, each.bytes_down) for each in totals] == [(100, 1_000), (200, 800), (10, 100)]

    def test_of_an_agent_that_restarts_after_the_end_is_not_counted(self) -> None:
        facts = [*two_rounds(), TrafficSeen(at=20.0, device="a", sent=5, received=5)]
        facts[7] = accepted("a", 11.0, 1, traffic=(10, 100))
        totals = make_report("r", facts).totals
        assert (totals.bytes_up, totals.bytes_down) == (10, 100)


def test_a_run_that_has_not_begun_is_reported_as_queued() -> None:
    report = make_report("r", [created()])
    assert (report.state, report.rounds, report.totals.participation_rate) == ("queued", [], None)


def test_an_unknown_run_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        make_report("nobody", two_rounds())
