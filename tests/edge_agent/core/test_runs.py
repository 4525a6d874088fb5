"""Runs and tasks that come and go, event by event."""

from __future__ import annotations

from fedmq_edge_agent.core.effects import Ask, CommitState, Note, RemoveFiles, RemoveRun, Send, SendUpdate
from fedmq_edge_agent.core.events import ModelLoaded
from fedmq_protocol.messages import Report
from tests.edge_agent.core.driven import TOPICS, Device, bodies, of
from tests.edge_agent.scripted import EVERYBODY, TASK, UPLOAD, ScriptedCoordinator


def test_a_task_of_another_name_is_none_of_our_business(joined: Device) -> None:
    joined.coordinator.task = TASK.model_copy(update={"name": "letters"})
    effects = joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    assert of(effects, Send) == []
    assert joined.agent.waiting(now=joined.now) == "the run r1 trains letters, and this device has digits"


def test_a_task_of_another_version_is_reported_once_a_run(joined: Device) -> None:
    joined.coordinator.task = TASK.model_copy(update={"version": "2"})
    effects = joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    effects += joined.hear(joined.coordinator.announcement(lease=2, cohort=EVERYBODY))
    [report] = bodies(effects, Report)
    assert report.code == "task-mismatch"
    assert "version 2, and this device has 1: install" in report.detail
    assert of(effects, Ask) == []


def announced_in(coordinator: ScriptedCoordinator, codec: str) -> tuple[str, bytes]:
    upload = UPLOAD.model_copy(update={"codec": codec})
    return coordinator.seal(TOPICS.announcement, coordinator.announced(1, EVERYBODY, 9.0, upload=upload))


def test_a_codec_that_the_device_lacks_is_reported_once_a_run(joined: Device) -> None:
    effects = joined.hear(announced_in(joined.coordinator, "topk-log4/2"))
    effects += joined.hear(announced_in(joined.coordinator, "topk-log4/2"))
    [report] = bodies(effects, Report)
    assert report.code == "other"
    assert "takes updates in topk-log4/2, which this agent does not speak" in report.detail
    assert of(effects, Ask) == []
    assert joined.agent.waiting(now=joined.now) == report.detail


def test_the_first_version_of_a_codec_goes_without_saying(joined: Device) -> None:
    joined.hear(announced_in(joined.coordinator, "topk-log4/1"))
    assert joined.agent.desk.idle_reason == ""


def test_a_new_run_starts_without_a_residual_and_keeps_the_old_updates(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.trained()
    joined.coordinator.begin("r2")
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    joined.fetch()
    [ask] = of(joined.answer(ModelLoaded("r2", 0)), Ask)
    assert (ask.request.run, ask.request.residual_file, ask.request.updates_done) == ("r2", None, 0)
    joined.trained()
    effects = joined.hear(joined.coordinator.receipt("dev-1", 1, run="r1")) + joined.wait(2)
    assert RemoveRun("r1") in effects
    [commit] = of(effects, CommitState)
    assert effects.index(commit) < effects.index(RemoveRun("r1"))
    assert set(commit.state.runs) == {"r2"}
    assert [pending.header.run for pending in commit.state.runs["r2"].pending] == ["r2"]


def test_a_finished_run_drops_its_updates_and_says_so(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.trained()
    effects = joined.hear(joined.coordinator.announcement(state="finished"))
    assert any("drops an update that came too late" in note.text for note in of(effects, Note))
    assert len(joined.agent.desk.outbox) == 0
    assert of(joined.hear(joined.coordinator.lease("dev-1", 2)), Ask) == []
    assert joined.agent.waiting(now=joined.now) == "the run r1 is finished"


def test_a_training_that_outlives_its_run_is_dropped(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.hear(joined.coordinator.announcement(state="stopped"))
    effects = joined.trained()
    assert of(effects, SendUpdate) == []
    assert RemoveFiles("r1", ("update-1.bin", "residual-1.bin")) in effects
