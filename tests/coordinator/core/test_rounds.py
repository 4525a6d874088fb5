"""The round machine: when rounds open and close, who is waited for, and that it always says why it waits."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_protocol.codecs import names, optional_coders
from fedmq_protocol.messages import Announcement, Lease, Notice, Report, TaskRef
from tests.coordinator.core.world import FLOAT32, SCHEMA, World, settings

NAMES = [f"dev-{i}" for i in range(10)]


def fleet(n: int = 10) -> World:
    world = World()
    for name in NAMES[:n]:
        world.join(name)
    return world


def waiting(world: World, run: str = "r1") -> str:
    return world.core.run_view(run, now=world.now).waiting


def test_a_round_waits_for_enough_devices_and_says_so() -> None:
    world = fleet(1)
    run = world.start_run(settings(selection={"min_available_devices": 3}))
    assert run.version == 0, "the first version is published at once, so that devices can fetch it"
    assert run.members == set()
    assert "1 of 3 devices" in waiting(world)
    world.join("dev-1")
    world.join("dev-2")
    assert run.round_open
    assert world.announcement().cohort.devices == ["dev-0", "dev-1", "dev-2"]


@pytest.mark.parametrize("mode", ["sync", "fedasync", "fedbuff"])
def test_a_run_that_waits_is_announced_again_ever_less_often_until_devices_train(mode: str) -> None:
    """What a broker has dropped of it, and of what devices said, nobody else would ever say again."""
    world = fleet(1)
    world.start_run(settings(mode=mode, selection={"min_available_devices": 2}))
    began, seen, said = world.now, len(world.sent(Announcement)), []
    while world.now < began + 20_000:
        world.pass_time(10)
        if (count := len(world.sent(Announcement))) > seen:
            seen = count
            said.append(world.now - began)
    assert said == pytest.approx([60, 180, 420, 900, 1_860, 3_780, 7_380, 10_980, 14_580, 18_180], abs=20)
    world.tell(e.StopRequested("r1"))
    world.start_run(settings(mode=mode, selection={"min_available_devices": 2}), run="r2")
    seen = len(world.sent(Announcement))
    world.pass_time(61)
    assert len(world.sent(Announcement)) == seen + 1, "patience is for each run"
    world.join("dev-1")
    assert world.core.active is not None
    assert set(world.core.active.leases) == {"dev-0", "dev-1"}
    seen = len(world.sent(Announcement))
    world.pass_time(59)
    world.pass_time(10)
    assert len(world.sent(Announcement)) == seen


@pytest.mark.parametrize("mode", ["sync", "fedasync", "fedbuff"])
def test_one_that_seems_to_be_at_work_keeps_nobody_from_hearing_of_the_run(mode: str) -> None:
    """It died, and the broker never said so: lease after lease runs out."""
    world = fleet(1)
    world.start_run(settings(mode=mode, selection={"min_available_devices": 1}))
    seen = len(world.sent(Announcement))
    world.pass_time(600)
    assert len(world.sent(Announcement)) <= seen + 1
    world.pass_time(1_200)
    assert len(world.sent(Announcement)) > seen + 1


def test_nobody_who_is_gone_is_at_work_however_long_its_lease() -> None:
    world = fleet(1)
    world.start_run(settings(selection={"min_available_devices": 1, "round_timeout_s": 86_400}))
    world.leave("dev-0")
    seen = len(world.sent(Announcement))
    world.pass_time(61)
    assert len(world.sent(Announcement)) == seen + 1


def test_a_device_with_a_problem_or_another_task_is_not_selected() -> None:
    world = fleet(2)
    world.join("sick", problem="no data in /data")
    world.join("other", task=TaskRef(name="elsewhere", version="1", schema_hash=SCHEMA.hash))
    world.join("old", task=TaskRef(name="toy", version="0", schema_hash="1" * 64))
    run = world.start_run(settings())
    assert run.members == {"dev-0", "dev-1"}
    notices = world.sent(Notice)
    assert any(n.code == "task-mismatch" and "toy 0" in n.detail for n in notices), "the device is told"
    views = {d.device: d for d in world.core.view(now=world.now).devices}
    assert views["sick"].state == "unable"
    assert "another version" in views["old"].problem


def test_a_device_that_lacks_a_codec_of_the_run_is_not_selected_and_told_why() -> None:
    world = fleet(2)
    world.join("lean", codecs=["topk-sign/1", "int8/1", "float32/1"])
    world.join("old", codecs=["topk-log4", "int8", "float32"])
    run = world.start_run(settings())
    assert run.members == {"dev-0", "dev-1", "old"}, (
        "who names no version speaks the first, and who names none all"
    )
    assert [n.code for n in world.sent(Notice)] == ["unknown-codec"]
    assert "does not speak topk-log4/1" in world.sent(Notice)[0].detail
    views = {d.device: d for d in world.core.view(now=world.now).devices}
    assert (views["lean"].state, views["lean"].problem) == ("unable", world.sent(Notice)[0].detail)
    world.join("lean", session=2, codecs=["topk-log4/1", "int8/1", "float32/1"])
    assert {d.device: d for d in world.core.view(now=world.now).devices}["lean"].problem == ""


def test_an_optional_codec_takes_devices_that_name_it() -> None:
    world = fleet(2)
    world.join("able", codecs=names())
    run = world.start_run(
        settings(
            compression={"up": "topk-block4", "rounding": "stochastic"},
            selection={"min_available_devices": 1},
        )
    )
    assert run.members == {"able"}
    assert world.announcement().upload.rounding == "stochastic"


@pytest.mark.parametrize(
    ("compression", "complaint"),
    [
        ({"up": "gzip"}, "known are topk-log4"),
        ({"down": "topk-log4/2"}, "known are topk-log4"),
        ({"snapshot": "topk-log4"}, "a snapshot holds every parameter"),
        ({"down": "randk-int8"}, "randk-int8 is for updates"),
        ({"coders": ["who-knows/7"]}, "known are"),
        ({"rounding": "stochastic"}, "topk-log4 does not round by chance; those that do are topk-int8"),
    ],
)
def test_settings_with_unknown_codecs_are_refused_with_what_is_known(
    compression: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        settings(compression=compression)


def test_the_announcement_names_the_optional_coders_that_updates_may_use() -> None:
    world = fleet(1)
    world.start_run(settings())
    assert world.announcement().upload.coders == list(optional_coders())
    world = fleet(1)
    world.start_run(settings(compression={"coders": []}))
    assert world.announcement().upload.coders == []


def test_the_round_closes_with_the_last_update() -> None:
    world = fleet()
    run = world.start_run(settings(rounds=3))
    for number, name in enumerate(NAMES):
        assert run.round == 1
        assert f"{number} of 10 updates" in waiting(world)
        world.send(name, 0.1)
    assert (run.round, run.version) == (2, 1)
    step = world.of(f.StepTaken)[-1]
    assert isinstance(step, f.StepTaken)
    assert (step.closed_by, step.num_updates) == ("all", 10)


def test_the_straggler_deadline_is_twice_the_median_once_half_have_answered() -> None:
    world = fleet()
    run = world.start_run(settings(rounds=3, selection={"deadline_min_s": 0.1, "round_timeout_s": 500}))
    world.pass_time(20)
    for name in NAMES[:5]:
        world.send(name, 0.1)
    assert "closes in 20 s" in waiting(world)
    view = world.core.run_view("r1", now=world.now)
    assert view.round_open
    assert view.closes_in_s == pytest.approx(20.0, abs=0.5)
    assert view.round_age_s == pytest.approx(world.now - world.core.runs["r1"].opened_at)
    world.pass_time(19)
    assert run.round == 1
    world.pass_time(1.5)
    assert run.round == 2
    step = world.of(f.StepTaken)[-1]
    assert isinstance(step, f.StepTaken)
    assert (step.closed_by, step.num_updates) == ("deadline", 5)
    assert run.members == set(NAMES[:5]), "those still at work are not asked again"
    assert "train on, counted later" in waiting(world)


@pytest.mark.parametrize("step_s", [0.5, 60])
def test_without_a_deadline_who_does_not_answer_is_waited_for_until_the_time_out(step_s: float) -> None:
    """The leases run out at that very moment: that nobody is waited for any more is no answer."""
    world = fleet(2)
    run = world.start_run(settings(rounds=3, selection={"deadline_factor": 0, "round_timeout_s": 50}))
    world.send("dev-0", 0.1)
    for _ in range(round(60 / step_s)):
        world.pass_time(step_s)
    assert run.round == 2
    step = world.of(f.StepTaken)[-1]
    assert isinstance(step, f.StepTaken)
    assert (step.closed_by, step.num_updates) == ("timeout", 1)


@pytest.mark.parametrize(
    ("selection", "after_s", "why"),
    [
        ({"deadline_factor": 0, "round_timeout_s": 600}, 600, "timeout"),
        ({"deadline_min_s": 300}, 300, "deadline"),
        ({"deadline_factor": 6}, 180, "deadline"),  # six times the median of 20 and 40 s
    ],
)
def test_who_is_known_to_be_fast_is_waited_for_as_long_as_the_settings_say(
    selection: dict[str, float], after_s: float, why: str
) -> None:
    world = fleet(2)
    run = world.start_run(settings(rounds=5, selection=selection))
    for name in NAMES[:2]:
        world.pass_time(20)
        world.send(name, 0.1)
    opened, version = world.now, run.version
    world.pass_time(20)
    world.send("dev-0", 0.1)
    while run.version == version:
        world.pass_time(1)
    assert world.now - opened == pytest.approx(after_s, abs=2)
    step = world.of(f.StepTaken)[-1]
    assert isinstance(step, f.StepTaken)
    assert (step.closed_by, step.num_updates) == (why, 1)


def test_a_round_whose_last_member_answers_behind_a_shrunk_deadline_has_them_all() -> None:
    world = fleet(8)
    world.start_run(settings(rounds=5))
    for name in NAMES[4:8]:
        world.leave(name)
    world.pass_time(1)
    for name in NAMES[:3]:
        world.send(name, 0.1)
    world.pass_time(20)
    world.send("dev-3", 0.1)
    step = world.of(f.StepTaken)[-1]
    assert isinstance(step, f.StepTaken)
    assert (step.closed_by, step.num_updates) == ("all", 4)


def test_nobody_waits_for_a_device_that_is_known_to_be_slow() -> None:
    world = fleet(4)
    run = world.start_run(settings(rounds=20, selection={"deadline_min_s": 0.1}))
    slow = "dev-3"
    for _ in range(2):
        lease = run.cohort_lease
        base = run.version
        world.pass_time(1)
        for name in NAMES[:3]:
            world.send(name, 0.1)
        world.pass_time(30)
        world.send(slow, 0.1, lease=lease, base=base)
    opened = world.now
    while slow not in run.members:
        for name in sorted(run.members):
            world.send(name, 0.1)
    world.now = opened + 1
    number = run.round
    for name in NAMES[:3]:
        world.send(name, 0.1)
    assert run.round == number + 1, "the three fast ones close the round; the slow one trains on"


def test_over_selection_closes_with_the_aim() -> None:
    world = fleet()
    run = world.start_run(settings(rounds=3, selection={"fraction_train": 0.5, "over_selection": 1.4}))
    assert (len(run.members), run.goal) == (7, 5)
    for name in sorted(run.members)[:5]:
        world.send(name, 0.1)
    step = world.of(f.StepTaken)[-1]
    assert isinstance(step, f.StepTaken)
    assert step.closed_by == "goal"
    assert run.round == 2


def test_nobody_waits_for_a_device_that_is_gone() -> None:
    world = fleet()
    run = world.start_run(settings(rounds=3))
    world.leave("dev-9")
    for name in NAMES[:8]:
        world.send(name, 0.1)
    assert "dev-9 offline" in waiting(world)
    assert "by its last will" in waiting(world)
    world.send("dev-8", 0.1)
    assert run.round == 2


def test_a_late_last_will_of_an_earlier_session_is_recognised() -> None:
    world = fleet(2)
    world.join("dev-0", session=5)
    world.leave("dev-0", session=4)
    assert world.core.state.devices["dev-0"].online
    world.devices["dev-0"].sealer.epoch = 5
    world.leave("dev-0", session=5)
    assert not world.core.state.devices["dev-0"].online


def test_a_round_that_lost_everybody_begins_again_when_somebody_comes() -> None:
    world = fleet(2)
    run = world.start_run(settings(rounds=3))
    for name in NAMES[:2]:
        world.leave(name)
    world.pass_time(30)
    assert run.round == 1
    world.join("dev-7")
    assert run.leases["dev-7"].lease == run.cohort_lease
    world.send("dev-7", 0.1)
    assert run.version == 1


def test_a_round_nobody_answers_ends_with_its_time_out_and_leases_come_back() -> None:
    world = fleet(2)
    run = world.start_run(settings(rounds=3, selection={"round_timeout_s": 60}))
    first = run.cohort_lease
    world.pass_time(61)
    assert run.round == 1
    assert run.cohort_lease > first, "the same devices are asked again"
    assert {fact.why for fact in world.of(f.LeaseReturned) if isinstance(fact, f.LeaseReturned)} == {
        "expired"
    }


def test_a_device_that_cannot_train_gives_its_lease_back_and_is_left_in_peace() -> None:
    world = fleet(3)
    run = world.start_run(settings(rounds=3))
    report = Report(code="train-failed", detail="boom at task.py:3", run="r1", lease=run.cohort_lease)
    world.say(world.devices["dev-0"], "report", report)
    world.send("dev-1", 0.1)
    world.send("dev-2", 0.1)
    assert run.round == 2, "nobody waits for it"
    assert "dev-0" not in run.members
    assert next(d for d in world.core.view(now=world.now).devices if d.device == "dev-0").state == "paused"
    world.pass_time(11)
    for name in ("dev-1", "dev-2"):
        world.send(name, 0.1)
    assert "dev-0" in run.members, "after a while it may try again"


def test_a_run_ends_after_its_rounds_and_the_next_in_the_queue_begins() -> None:
    world = fleet(2)
    first = world.start_run(settings(rounds=2), "r1")
    second = world.start_run(settings(rounds=1), "r2")
    assert "runs before it" in waiting(world, "r2")
    for _ in range(2):
        for name in NAMES[:2]:
            world.send(name, 0.1)
    assert (first.state, first.end_reason) == ("finished", "all 2 rounds are done")
    assert second.state == "active"
    assert [a.state for a in world.sent(Announcement) if a.run == "r1"][-1] == "finished"
    assert world.announcement().run == "r2"
    assert first.version == 2, "known though its weights are not held any more"


def test_a_run_ends_when_its_target_is_reached_and_knows_its_best_version() -> None:
    world = fleet(2)
    run = world.start_run(settings(rounds=50, target=0.9))
    for version, accuracy in ((0, 0.1), (1, 0.92)):
        world.tell(e.EvaluationFinished("r1", version, 1.0, 100, {"accuracy": accuracy}))
        for name in NAMES[:2] if not run.over else []:
            world.send(name, 0.1)
    assert run.state == "finished"
    assert "reached 0.9" in run.end_reason
    assert run.best_version == 1


def test_a_stopped_run_says_so_to_late_updates() -> None:
    world = fleet(2)
    run = world.start_run(settings(rounds=50))
    world.tell(e.StopRequested("r1"))
    assert run.state == "stopped"
    receipt = world.send("dev-0", 0.1)
    assert (receipt.outcome, receipt.reason, receipt.residual) == ("rejected", "run-over", "discard")


def test_a_large_cohort_is_announced_as_a_rule_that_devices_apply_themselves() -> None:
    world = World()
    for i in range(200):
        world.join(f"d{i:03d}")
    run = world.start_run(settings(rounds=3, selection={"fraction_train": 0.5}))
    cohort = world.announcement().cohort
    assert cohort.devices is None
    assert cohort.rate == pytest.approx(0.5)
    assert 70 < len(run.members) < 130
    from fedmq_protocol.sampling import in_cohort  # noqa: PLC0415

    assert run.members == {
        name for name in world.devices if in_cohort(cohort, world.announcement().round, name)
    }
    for name in sorted(run.members):
        world.send(name, 0.1)
    assert run.round == 2


def test_fedbuff_keeps_devices_busy_and_publishes_by_the_buffer() -> None:
    world = fleet(4)
    run = world.start_run(
        settings(
            mode="fedbuff",
            rounds=5,
            compression=FLOAT32,
            selection={"min_available_devices": 4},
            strategy={"buffer_size": 2, "publish_interval_s": 0},
        )
    )
    assert set(run.leases) == set(NAMES[:4])
    leases = {name: held.lease for name, held in run.leases.items()}
    world.send("dev-0", 0.1, lease=leases["dev-0"])
    assert run.version == 0
    assert "1 of 2 updates for the next step" in waiting(world)
    world.send("dev-1", 0.1, lease=leases["dev-1"])
    assert run.version == 1
    assert world.announcement().cohort.devices == ["dev-0", "dev-1"], (
        "those that are free train on the new version"
    )
    world.send("dev-2", 0.1, lease=leases["dev-2"], base=0)
    late = world.of(f.UpdateAccepted)[-1]
    assert isinstance(late, f.UpdateAccepted)
    assert late.staleness == 1


def test_a_device_that_comes_between_two_publications_gets_a_lease_of_its_own() -> None:
    world = fleet(2)
    run = world.start_run(
        settings(mode="fedbuff", rounds=5, strategy={"buffer_size": 3, "publish_interval_s": 0})
    )
    world.join("dev-5")
    assert world.sent(Lease)[-1].lease == run.leases["dev-5"].lease


def test_a_partial_buffer_is_flushed_when_nobody_is_left_to_fill_it() -> None:
    world = fleet(3)
    run = world.start_run(
        settings(mode="fedbuff", rounds=5, strategy={"buffer_size": 3, "publish_interval_s": 0})
    )
    leases = {name: held.lease for name, held in run.leases.items()}
    world.leave("dev-2")
    world.send("dev-0", 0.1, lease=leases["dev-0"])
    world.send("dev-1", 0.1, lease=leases["dev-1"])
    assert run.version == 1


def test_the_publish_interval_is_kept() -> None:
    world = fleet(2)
    run = world.start_run(settings(mode="fedasync", rounds=50, strategy={"publish_interval_s": 5}))
    leases = {name: held.lease for name, held in run.leases.items()}
    world.pass_time(1)
    world.send("dev-0", 0.1, lease=leases["dev-0"])
    assert (run.version, run.dirty) == (0, True)
    assert "publishes in" in waiting(world)
    world.pass_time(4.1)
    assert run.version == 1


def test_what_devices_did_is_shown_after_the_run_too() -> None:
    world = fleet(2)
    world.start_run(settings(rounds=1))
    for name in NAMES[:2]:
        world.send(name, 0.1)
    assert [d.updates for d in world.core.view(now=world.now).devices] == [1, 1]


def test_a_refused_update_does_not_keep_its_device_from_the_next_lease() -> None:
    world = fleet(2)
    run = world.start_run(
        settings(mode="fedbuff", rounds=9, compression=FLOAT32, strategy={"buffer_size": 2})
    )
    for name in NAMES[:2]:
        held = run.leases[name]
        bad = world.update(name, 0.1, lease=held.lease)
        world.say(world.devices[name], "update", bad.model_copy(update={"data": b"rot"}))
    assert not run.leases, "both are left in peace for a while"
    world.pass_time(30)
    assert set(run.leases) == set(NAMES[:2])


def test_the_devices_own_evaluation_ends_a_run_without_central_data() -> None:
    world = fleet(2)
    run = world.start_run(settings(rounds=50, target=0.5))
    for version in (0, 1):
        for name in NAMES[:2]:
            measured = {
                "version": version,
                "num_examples": 5,
                "loss": 1.0,
                "metrics": {"accuracy": 0.3 + 0.4 * version},
            }
            if not run.over:
                world.send(name, 0.1, evaluation=measured)
    assert run.state == "finished"
    assert "accuracy 0.7000 of version 1 reached 0.5" in run.end_reason
    assert run.best_version == 1


def test_after_a_long_pause_the_announcement_gives_the_time_that_the_coordinator_waits() -> None:
    world = fleet(2)
    run = world.start_run(settings(rounds=3))
    told = world.announcement().lease_s
    world.now += 3600
    world.restart()
    assert world.announcement().lease_s == pytest.approx(told)
    run = world.core.runs["r1"]
    world.pass_time(told - 1)
    assert set(run.leases) == set(NAMES[:2])


def test_leases_that_no_announcement_says_are_said_again_after_a_reconnect() -> None:
    world = fleet(2)
    run = world.start_run(settings(mode="fedbuff", rounds=9))
    world.effects.clear()
    world.tell(e.BrokerDisconnected("gone"))
    world.tell(e.BrokerConnected())
    assert {lease.lease for lease in world.sent(Lease)} == {held.lease for held in run.leases.values()}


def test_chunks_of_a_run_that_is_over_are_cleared_and_stay_so() -> None:
    world = fleet(2)
    world.start_run(settings(rounds=1))
    for name in NAMES[:2]:
        world.send(name, 0.1)
    world.restart()
    retained: set[str] = set()
    world.pass_time(40)
    for effect in world.effects:
        match effect:
            case do.Send(topic=topic, retain=True) if "/model/" in topic:
                retained.add(topic)
            case do.Clear(topic=topic):
                retained.discard(topic)
            case _:
                pass
    assert not retained
