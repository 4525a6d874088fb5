"""Asking after announcements, and a trainer that crashes, hangs and fails, event by event."""

from __future__ import annotations

from typing import Any, NoReturn

import msgpack
import pytest
from pydantic import ValidationError

from fedmq_edge_agent.core.effects import (
    Ask,
    CommitState,
    Effect,
    LoadSnapshot,
    StartTrainer,
    StopTrainer,
    Subscribe,
)
from fedmq_edge_agent.core.events import (
    AgentStarted,
    ModelLoaded,
    TimePassed,
    TrainerDied,
    TrainerRefused,
    TrainerStarted,
)
from fedmq_protocol.messages import Hello, Presence, Report
from tests.edge_agent.core.driven import OPENED, TOPICS, Device, bodies, of
from tests.edge_agent.scripted import EVERYBODY, NOBODY


def test_without_an_announcement_it_says_hello_and_goes_on_doing_so(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    times = []
    while device.now < 400:
        deadline = device.agent.next_deadline()
        assert deadline is not None
        device.now = deadline
        times += [device.now - 100 for _ in bodies(device.tell(TimePassed()), Hello)]
    assert times[:6] == pytest.approx([3, 9, 21, 45, 93, 153])
    answer = device.coordinator.announced(0, NOBODY, 60.0)
    assert of(device.hear(device.coordinator.seal(TOPICS.down("dev-1", "announcement"), answer)), Subscribe)


def test_an_absurd_manifest_is_refused_before_memory_is_taken(joined: Device) -> None:
    sane = joined.coordinator.manifest
    for absurd in ({"version": 2**53 - 1}, {"version": 5, "base": 6}):
        manifest = sane.model_copy(update=absurd)
        effects = joined.hear(joined.coordinator.announcement(manifest=manifest, inline=False))
        assert of(effects, Subscribe) == []
    assert joined.agent.conversation.rejected["run", "bad-manifest"] == 2


def test_a_replayed_announcement_changes_nothing(joined: Device) -> None:
    old = joined.coordinator.announcement(lease=1, cohort=EVERYBODY)
    joined.coordinator.publish()
    joined.hear(joined.coordinator.announcement())
    joined.answer(ModelLoaded("r1", 1))
    assert of(joined.hear(old), Ask) == []
    assert joined.agent.desk.following is not None
    assert joined.agent.desk.following.newest == 1


def test_a_crash_while_training_gives_the_lease_back_and_the_model_is_loaded_from_disk(
    joined: Device,
) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    effects = joined.tell(TrainerDied(1, "killed by SIGSEGV"))
    [report] = bodies(effects, Report)
    assert (report.code, report.lease) == ("train-failed", 1)
    assert of(effects, StartTrainer) == []
    assert of(joined.wait(1.5), StartTrainer) == [StartTrainer(2)]
    joined.tell(TrainerStarted(2))
    [ask] = of(joined.answer(OPENED), Ask)
    assert isinstance(ask.request, LoadSnapshot)
    assert of(joined.answer(ModelLoaded("r1", 0)), Ask) == []


def test_a_crash_loop_backs_off_up_to_five_minutes_and_shows_in_the_presence(joined: Device) -> None:
    starts, effects = [], list[Effect]()
    for _ in range(12):
        effects += joined.tell(TrainerDied(joined.agent.desk.trainer.generation, "boom"))
        before = joined.now
        while not (started := of(joined.wait(1.0), StartTrainer)):
            pass
        assert started
        starts.append(joined.now - before)
    assert starts[-1] == pytest.approx(300, abs=2)
    problems = [body.problem for body in bodies(effects, Presence)]
    assert problems[0] == "the trainer failed 3 times in a row, last: boom"
    # Once it is back it may be counted on again, or it would never get the chance to show that it can.
    joined.tell(TrainerStarted(joined.agent.desk.trainer.generation))
    assert [body.problem for body in bodies(joined.answer(OPENED), Presence)] == [""]


def test_a_hung_training_is_ended_after_ten_times_the_usual(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.now += 6.0
    joined.trained()
    joined.hear(joined.coordinator.lease("dev-1", 2, lease_s=10.0))
    effects = joined.wait(59)
    assert of(effects, StopTrainer) == []
    effects = joined.wait(2)
    assert of(effects, StopTrainer) == [StopTrainer(1)]
    [report] = bodies(effects, Report)
    assert (report.code, report.lease) == ("train-failed", 2)
    assert "hung" in report.detail
    assert joined.tell(TrainerDied(1, "killed")) == []  # its death is no news


def test_a_failed_training_is_reported_and_the_next_lease_waits_a_little(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    effects = joined.answer(TrainerRefused("train-failed", "ValueError: no (task.py:12)"))
    [report] = bodies(effects, Report)
    assert (report.code, report.lease, report.detail) == ("train-failed", 1, "ValueError: no (task.py:12)")
    assert of(joined.hear(joined.coordinator.lease("dev-1", 2)), Ask) == []
    assert len(of(joined.wait(1.5), Ask)) == 1


def test_a_training_that_keeps_failing_shows_in_the_presence_while_the_device_rests(joined: Device) -> None:
    effects: list[Effect] = []
    for lease in (1, 2, 3):
        effects += joined.hear(joined.coordinator.lease("dev-1", lease))
        effects += joined.wait(5)
        effects += joined.answer(TrainerRefused("train-failed", "NaN"))
    effects += joined.wait(30)
    problems = [body.problem for body in bodies(effects, Presence)]
    assert problems == ["the trainer failed 3 times in a row, last: NaN", ""]


def test_a_task_that_does_not_open_is_said_in_the_presence_and_tried_again(device: Device) -> None:
    device.tell(AgentStarted())
    device.connect()
    device.tell(TrainerStarted(1))
    effects = device.answer(TrainerRefused("task-error", "task.py:3: SyntaxError"))
    assert of(effects, StopTrainer) == [StopTrainer(1)]
    assert [body.problem for body in bodies(effects, Presence)] == ["task-error: task.py:3: SyntaxError"]
    assert len(of(device.wait(1.5), StartTrainer)) == 1
    device.tell(TrainerStarted(device.agent.desk.trainer.generation))
    effects = device.answer(OPENED)
    assert [body.problem for body in bodies(effects, Presence)] == [""]


def test_a_bad_residual_is_given_up_and_the_training_goes_on(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.trained()
    joined.hear(joined.coordinator.lease("dev-1", 2))
    effects = joined.answer(TrainerRefused("bad-residual", "torn"))
    [commit] = of(effects, CommitState)
    assert commit.state.runs["r1"].residual_file is None
    [ask] = of(effects, Ask)
    assert (ask.request.lease, ask.request.counter, ask.request.residual_file) == (2, 2, None)


def nested(depth: int) -> bytes:
    body: dict[str, Any] = {}
    for _ in range(depth):
        body = {"inner": body}
    content = msgpack.packb([1, "announcement", "coordinator", 1, 1, bytes(8), body])
    packet: bytes = msgpack.packb([content, bytes(64)])
    return packet


def test_what_cannot_even_be_opened_is_a_rejection_like_any_other(
    joined: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for depth in (10, 300, 480):
        joined.hear((TOPICS.announcement, nested(depth)))
    assert joined.agent.conversation.rejected["run", "malformed"] == 3
    errors: list[Exception] = [RecursionError("too deep"), ValueError("too long")]
    with pytest.raises(ValidationError) as caught:
        Presence.model_validate({})
    errors.append(caught.value)

    def fail(topic: str, payload: bytes) -> NoReturn:
        raise errors.pop()

    monkeypatch.setattr("fedmq_protocol.envelope.open_envelope", fail)
    while errors:
        joined.hear((TOPICS.down("dev-1", "lease"), b"hostile"))
    monkeypatch.undo()
    assert joined.agent.conversation.rejected["lease", "malformed"] == 3
    assert of(joined.hear(joined.coordinator.lease("dev-1", 1)), Ask) != []


def test_garbage_on_every_topic_is_counted_and_said_once(joined: Device) -> None:
    topics = [
        TOPICS.coordinator_status,
        TOPICS.announcement,
        *(
            TOPICS.down("dev-1", kind)
            for kind in ("announcement", "lease", "receipt", "credit", "chunk", "notice")
        ),
        TOPICS.chunk("r1", 1, "delta", 0),
        "fedmq/v1/other/thing",
    ]
    state = joined.agent.desk.ledger.state
    for topic in topics:
        for payload in (b"", b"\xc1", b"garbage" * 1_000, b"\x92\xc4\x00\xc4\x40" + bytes(64)):
            joined.hear((topic, payload))
    noted = sum(joined.hear((topic, b"again")) != [] for topic in topics)
    assert noted == 0
    assert joined.agent.conversation.rejected.total() >= 4 * len(topics)
    assert joined.agent.desk.ledger.state == state
    assert of(joined.hear(joined.coordinator.lease("dev-1", 1)), Ask) != []
