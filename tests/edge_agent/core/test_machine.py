"""The device's machine, event by event, with the effects that it must ask for."""

from __future__ import annotations

import itertools
import random
from typing import Any, NoReturn

import msgpack
import pytest
from pydantic import ValidationError

from fedmq_edge_agent.core.effects import (
    ApplyDelta,
    Ask,
    CommitState,
    Effect,
    FinishBlob,
    LoadSnapshot,
    Note,
    OpenTask,
    PinCoordinator,
    RemoveFiles,
    RemoveRun,
    Restore,
    SaveModelIndex,
    Send,
    SendUpdate,
    SendUploadChunk,
    StartTrainer,
    StopTrainer,
    StoreBlob,
    Subscribe,
    Train,
    Unsubscribe,
    WriteBlobPart,
)
from fedmq_edge_agent.core.events import (
    AgentStarted,
    BlobFinished,
    Connected,
    Disconnected,
    ModelLoaded,
    PacketArrived,
    PayloadLost,
    ResidualRestored,
    TaskOpened,
    TimePassed,
    TrainerAnswered,
    TrainerDied,
    TrainerRefused,
    TrainerStarted,
    TrainingFinished,
)
from fedmq_edge_agent.core.machine import Agent, AgentLimits
from fedmq_edge_agent.core.state import AgentState, Link, ModelIndex, Part, PartHead
from fedmq_protocol.chunks import Assembly, blob_ref
from fedmq_protocol.envelope import COORDINATOR, Sealer
from fedmq_protocol.messages import (
    Cohort,
    Credit,
    Get,
    Hello,
    ModelChunk,
    Offer,
    Presence,
    Receipt,
    Report,
    TrainSettings,
)
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.edge_agent.scripted import EVERYBODY, NOBODY, TASK, UPLOAD, ScriptedCoordinator

KEY = SigningKey(b"d" * 32)
TOPICS = Topics("home")
OPENED = TaskOpened(TASK, ("topk-log4",), 143)
PAYLOAD = b"update" * 50


def make_agent(**changes: Any) -> Agent:
    given: dict[str, Any] = {
        "public_key": KEY.public_key,
        "coordinator_key": None,
        "state": AgentState(),
        "indexes": {},
        "chance": lambda: 0.5,
    }
    limits = changes.pop("limits", AgentLimits(federation="home", device="dev-1"))
    return Agent(limits, **(given | changes))


class Device:
    """Drives one machine, and remembers what it last asked for."""

    def __init__(self, coordinator: ScriptedCoordinator, **changes: Any) -> None:
        self.coordinator = coordinator
        self.agent = make_agent(**changes)
        self.now = 100.0

    def tell(self, event: Any) -> list[Effect]:
        effects = self.agent.handle(event, now=self.now)
        deadline = self.agent.next_deadline()
        assert deadline is None or deadline > self.now, "a deadline that `handle` leaves behind would spin"
        assert self.agent.waiting(now=self.now)
        return effects

    def hear(self, message: tuple[str, bytes]) -> list[Effect]:
        return self.tell(PacketArrived(*message))

    def answer(self, answer: Any) -> list[Effect]:
        return self.tell(TrainerAnswered(self.agent.desk.trainer.generation, answer))

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, deadline by deadline; all effects."""
        until, effects = self.now + seconds, list[Effect]()
        while (deadline := self.agent.next_deadline()) is not None and deadline <= until:
            self.now = deadline
            effects += self.tell(TimePassed())
        self.now = until
        return effects

    def start(self) -> list[Effect]:
        effects = self.tell(AgentStarted())
        effects += self.tell(TrainerStarted(self.agent.desk.trainer.generation))
        return effects + self.answer(OPENED)

    def connect(self) -> list[Effect]:
        return self.tell(Connected(self.agent.next_session(), 131_072))

    def join(self) -> list[Effect]:
        """Up to where the first version is loaded."""
        self.start()
        self.connect()
        effects = self.hear(self.coordinator.status())
        effects += self.hear(self.coordinator.announcement())
        effects += self.fetch()
        return effects + self.answer(ModelLoaded(self.coordinator.run, self.coordinator.versions[-1].number))

    def fetch(self) -> list[Effect]:
        """Answer all subscriptions until nothing lacks."""
        effects: list[Effect] = []
        retained = self.coordinator.retained()
        while asked := self.asked():
            for topic in asked:
                new = self.hear((topic, retained[topic]))
                for finish in of(new, FinishBlob):
                    new += self.tell(BlobFinished(finish.run, finish.blob, finish.version, ok=True))
                effects += new
        return effects

    def asked(self) -> list[str]:
        pull = None if self.agent.desk.following is None else self.agent.desk.following.pull
        return [] if pull is None else [pull._topic(key, index) for key, index in pull._asked]

    def trained(self, *, payload: bytes = PAYLOAD) -> list[Effect]:
        request = self.agent.desk.trainer.request
        assert isinstance(request, Train)
        return self.answer(
            TrainingFinished(
                run=request.run,
                payload_file=f"update-{request.counter}.bin",
                payload=blob_ref(payload),
                residual_file=f"residual-{request.counter}.bin",
                num_examples=143,
                train_s=0.2,
                metrics={"train_loss": 0.5},
            )
        )


def part_head(first: ModelChunk) -> PartHead:
    """What the first chunk tells of a blob."""
    link = Link(
        blob=first.blob,
        version=first.version,
        ref=first.ref,
        chain_hash=first.chain_hash,
        rebase=first.rebase and first.blob == "delta",
        replica_hash=first.replica_hash,
    )
    return PartHead(link=link, count=first.count, chunk_bytes=len(first.data))


def of(effects: list[Effect], kind: type[Any]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def quiet(effects: list[Effect]) -> list[Effect]:
    """Without what is for people."""
    return [effect for effect in effects if not isinstance(effect, Note)]


def bodies(effects: list[Effect], kind: type[Any]) -> list[Any]:
    return [send.body for send in of(effects, Send) if isinstance(send.body, kind)]


@pytest.fixture
def coordinator() -> ScriptedCoordinator:
    return ScriptedCoordinator()


@pytest.fixture
def device(coordinator: ScriptedCoordinator) -> Device:
    return Device(coordinator)


@pytest.fixture
def joined(device: Device) -> Device:
    device.join()
    return device


# ---------------------------------------------------------------------------------- from the start to the first lease


def test_a_start_reserves_session_numbers_and_starts_the_trainer(device: Device) -> None:
    assert device.tell(AgentStarted()) == [
        CommitState(AgentState(identity=KEY.public_key, session=100)),
        StartTrainer(1),
    ]
    assert device.tell(TrainerStarted(1)) == [Ask(1, OpenTask())]


def test_the_birth_certificate_follows_each_connection_and_each_change(device: Device) -> None:
    device.tell(AgentStarted())
    topic = TOPICS.presence("dev-1")
    opening = Presence(online=True, session=1, public_key=KEY.public_key, problem="the task is being opened")
    assert device.connect() == [Send(topic, opening, retain=True)]
    device.tell(TrainerStarted(1))
    certificate = Presence(
        online=True,
        session=1,
        public_key=KEY.public_key,
        tasks=[TASK],
        codecs=["topk-log4", "packed/1"],
        num_examples=143,
    )
    assert quiet(device.answer(OPENED)) == [Send(topic, certificate, retain=True)]
    device.tell(Disconnected("gone"))
    again = certificate.model_copy(update={"session": 2})
    assert device.connect() == [Send(topic, again, retain=True)]


def test_a_coordinator_that_came_back_is_told_who_is_there_though_no_broker_kept_it(joined: Device) -> None:
    certificate = joined.agent.presence(online=True, session=1)
    assert bodies(joined.hear(joined.coordinator.status()), Presence) == []  # the same one as before
    joined.hear(joined.coordinator.status(online=False))
    assert bodies(joined.hear(joined.coordinator.status()), Presence) == [certificate]
    joined.coordinator.session += 1  # its connection was renewed, and its last will never came
    assert bodies(joined.hear(joined.coordinator.status()), Presence) == [certificate]
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    joined.trained()
    joined.coordinator.restart()  # first heard of by something else than a status
    effects = joined.hear(joined.coordinator.announcement())
    said = [effect for effect in effects if isinstance(effect, Send | SendUpdate)]
    assert said[0] == Send(TOPICS.presence("dev-1"), certificate, retain=True)
    assert isinstance(said[1], SendUpdate)


def test_whoever_says_hello_says_who_it_is_first(device: Device) -> None:
    device.start()
    device.connect()
    said = [type(send.body) for send in of(device.wait(10), Send)]
    assert said == [Presence, Hello, Presence, Hello]


def test_session_numbers_grow_over_restarts(coordinator: ScriptedCoordinator) -> None:
    first = make_agent()
    [commit] = of(first.handle(AgentStarted(), now=0.0), CommitState)
    used = [first.next_session() for _ in range(5)]
    second = make_agent(state=commit.state)
    assert second.next_session() > max(used)


def test_sessions_go_on_above_the_clock_though_the_state_was_lost_or_is_an_old_one() -> None:
    now = 1_800_000_000.0
    lived = make_agent(clock_s=now)
    [commit] = of(lived.handle(AgentStarted(), now=0.0), CommitState)
    used = [lived.next_session() for _ in range(5)]
    assert used[0] == now + 1
    assert commit.state.session >= used[-1]
    backup = AgentState(session=4_000)
    for state in (AgentState(), backup):
        assert make_agent(clock_s=now + 60, state=state).next_session() > used[-1]
    # A clock that was never set, or was set back, takes nothing away.
    for clock_s in (0.0, 86_400.0, now - 1e6):
        assert make_agent(clock_s=clock_s, state=commit.state).next_session() > used[-1]
    assert make_agent(clock_s=86_400.0).next_session() == 1


def test_the_first_key_is_pinned_and_another_refused(device: Device) -> None:
    device.start()
    device.connect()
    effects = device.hear(device.coordinator.status())
    assert of(effects, PinCoordinator) == [PinCoordinator(device.coordinator.key.public_key)]
    other = ScriptedCoordinator(key=SigningKey(b"x" * 32))
    effects = device.hear(other.status())
    [note] = of(effects, Note)
    assert "remove coordinator.pub" in note.text
    assert [report.code for report in bodies(effects, Report)] == ["bad-message"]
    assert (
        quiet(device.hear(other.announcement(cohort=EVERYBODY, lease=1))) != []
    )  # the first of its kind is reported
    assert device.agent.desk.announcement is None
    assert device.hear(other.status()) == []  # the second is only counted
    assert device.agent.conversation.rejected["status", "bad-signature"] == 2


def test_another_coordinator_counts_its_epochs_from_the_beginning(joined: Device) -> None:
    for _ in range(8):
        joined.coordinator.restart()
    joined.hear(joined.coordinator.status())
    assert joined.agent.desk.ledger.state.epoch == 9
    old, state = joined.coordinator, joined.agent.desk.ledger.state
    key = SigningKey(b"n" * 32)
    for told in (None, key.public_key):  # its pinned key was removed, or another one is configured
        device = Device(ScriptedCoordinator(key=key), state=state, coordinator_key=told)
        device.join()
        assert device.agent.desk.following is not None
        kept = device.agent.desk.ledger.state
        assert (kept.epoch, kept.coordinator) == (1, key.public_key)
        assert device.agent.conversation.rejected.total() == 0
        # Once it is known, the next start believes it at once, and still no echo of the past.
        again = Device(device.coordinator, state=kept, coordinator_key=key.public_key)
        again.start()
        again.connect()
        assert of(again.hear(device.coordinator.announcement()), Note) == []
        assert of(again.hear(device.coordinator.lease("dev-1", 1)), Note) == []
    same = Device(old, state=state, coordinator_key=None)  # removed without need: echoes stay echoes
    same.start()
    same.connect()
    assert of(same.hear(ScriptedCoordinator(epoch=8).status()), PinCoordinator) == []
    assert same.agent.conversation.rejected["status", "old-epoch"] == 1
    assert of(same.hear(old.status()), PinCoordinator) == [PinCoordinator(old.key.public_key)]


def test_an_announcement_that_comes_before_the_key_is_heard_once_the_key_is_known(device: Device) -> None:
    device.start()
    device.connect()
    assert device.hear(device.coordinator.announcement()) == []
    effects = device.hear(device.coordinator.status())
    assert of(effects, Subscribe) == [Subscribe((TOPICS.chunk("r1", 0, "snapshot", 0),))]


def test_a_configured_key_needs_no_status(coordinator: ScriptedCoordinator) -> None:
    device = Device(coordinator, coordinator_key=coordinator.key.public_key)
    device.start()
    device.connect()
    assert of(device.hear(coordinator.announcement()), Subscribe)


def test_the_snapshot_is_pulled_first_chunk_first_and_then_loaded(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    effects = device.hear(device.coordinator.announcement())
    topics = [TOPICS.chunk("r1", 0, "snapshot", index) for index in range(3)]
    commit, subscribe = quiet(effects)
    assert isinstance(commit, CommitState)
    assert subscribe == Subscribe((topics[0],))
    retained = device.coordinator.retained()
    chunks = device.coordinator.chunks("snapshot", 0)
    head = part_head(chunks[0])
    assert device.hear((topics[0], retained[topics[0]])) == [
        Unsubscribe((topics[0],)),
        WriteBlobPart("r1", head, 0, chunks[0].data),
        Subscribe((topics[1], topics[2])),
    ]
    assert device.hear((topics[2], retained[topics[2]])) == [
        Unsubscribe((topics[2],)),
        WriteBlobPart("r1", head, 2, chunks[2].data),
    ]
    ref = device.coordinator.manifest.snapshot
    assert device.hear((topics[1], retained[topics[1]])) == [
        Unsubscribe((topics[1],)),
        WriteBlobPart("r1", head, 1, chunks[1].data),
        FinishBlob("r1", "snapshot", 0, ref),
    ]
    effects = device.tell(BlobFinished("r1", "snapshot", 0, ok=True))
    [index] = of(effects, SaveModelIndex)
    assert [link.file for link in index.index.links] == ["base-0.bin"]
    assert of(effects, Ask) == [
        Ask(1, LoadSnapshot("r1", 0, "base-0.bin", ref, device.coordinator.replica_hash(0)))
    ]
    assert device.answer(ModelLoaded("r1", 0)) == []
    assert device.agent.waiting(now=device.now) == "holds version 0 of r1; waiting for a lease"


def test_an_inline_delta_is_applied_and_trained_on_at_once(joined: Device) -> None:
    version = joined.coordinator.publish()
    assert version.delta is not None
    effects = joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    delta = ApplyDelta("r1", 1, "delta-1.bin", blob_ref(version.delta), rebase=False, replica_hash=None)
    [index] = of(effects, SaveModelIndex)
    assert effects == [StoreBlob("r1", "delta", 1, version.delta), Ask(1, delta), index]
    train = Train(
        run="r1",
        counter=1,
        lease=1,
        base_version=1,
        seed=7,
        train=TrainSettings(),
        upload=UPLOAD,
        updates_done=0,
        residual_file=None,
        evaluate=False,
    )
    assert joined.answer(ModelLoaded("r1", 1)) == [Ask(1, train)]


def test_a_trained_update_is_committed_before_it_is_sent(joined: Device) -> None:
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    commit, send = quiet(joined.trained())
    assert isinstance(commit, CommitState)
    assert isinstance(send, SendUpdate)
    kept = commit.state.runs["r1"]
    assert (kept.counter, kept.lease, kept.updates_done) == (1, 1, 1)
    assert kept.residual_file == "residual-1.bin"
    assert [pending.header for pending in kept.pending] == [send.header]
    assert send.file == "update-1.bin"
    assert (send.header.counter, send.header.lease, send.header.base_version) == (1, 1, 0)


def test_a_start_says_what_it_found_and_what_became_of_it(joined: Device) -> None:
    coordinator = joined.coordinator
    joined.hear(coordinator.lease("dev-1", 1))
    [commit] = of(joined.trained(), CommitState)
    chunks = coordinator.chunks("snapshot", 0)
    index = ModelIndex(links=(part_head(chunks[0]).link,))
    part = Part(part_head(chunks[0]), frozenset({0, 2}))
    again = Device(coordinator, state=commit.state, indexes={"r1": index}, parts={"r1": (part,)})
    assert next(note.text for note in of(again.start(), Note)) == (
        "found on the disk: r1: version 0, 2 of 3 chunks of snapshot 0, a residual, update 1 without a receipt"
    )
    again.connect()
    again.hear(coordinator.status())
    [note] = of(again.hear(coordinator.receipt("dev-1", 1)), Note)
    assert (note.level, note.text) == ("info", "update 1, from before the start, is accepted")


def test_an_accepted_update_goes_with_the_next_commit(joined: Device) -> None:
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    joined.trained()
    assert quiet(joined.hear(joined.coordinator.receipt("dev-1", 1))) == []
    assert len(joined.agent.desk.outbox) == 0
    commit, remove = joined.wait(2)
    assert isinstance(commit, CommitState)
    assert commit.state.runs["r1"].pending == ()
    assert remove == RemoveFiles("r1", ("update-1.bin",))


def test_a_lease_trains_once_though_it_is_announced_again(joined: Device) -> None:
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    joined.trained()
    assert of(joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY)), Ask) == []
    assert of(joined.hear(joined.coordinator.lease("dev-1", 1)), Ask) == []
    assert of(joined.hear(joined.coordinator.lease("dev-1", 2)), Ask) != []


def test_whoever_is_not_in_the_cohort_does_not_train(joined: Device) -> None:
    others = Cohort(devices=["dev-2"])
    assert of(joined.hear(joined.coordinator.announcement(lease=1, cohort=others)), Ask) == []
    me = Cohort(devices=["dev-1", "dev-2"])
    assert of(joined.hear(joined.coordinator.announcement(lease=1, cohort=me)), Ask) != []


def test_of_the_leases_that_come_while_training_only_the_newest_is_kept(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    assert quiet(joined.hear(joined.coordinator.lease("dev-1", 3))) == []
    assert quiet(joined.hear(joined.coordinator.lease("dev-1", 2))) == []
    [ask] = of(joined.trained(), Ask)
    assert (ask.request.lease, ask.request.counter, ask.request.residual_file) == (3, 2, "residual-1.bin")


def test_a_lease_that_overtakes_the_announcement_is_kept_and_the_announcement_asked_for(
    device: Device,
) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    assert bodies(device.hear(device.coordinator.lease("dev-1", 5)), Hello) == [Hello()]
    device.hear(device.coordinator.announcement())
    device.fetch()
    [ask] = of(device.answer(ModelLoaded("r1", 0)), Ask)
    assert ask.request.lease == 5


def test_a_lease_that_runs_out_is_not_trained_for(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.hear(joined.coordinator.lease("dev-1", 2, lease_s=5.0))
    joined.now += 6
    assert of(joined.trained(), Ask) == []
    assert joined.agent.desk.leases.held is None
    assert of(joined.hear(joined.coordinator.lease("dev-1", 2)), Ask) == []


def test_after_a_restart_the_lease_of_a_committed_update_is_not_trained_for_again(joined: Device) -> None:
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    assert joined.agent.desk.following is not None
    index = joined.agent.desk.following.replica.index
    before = joined.agent.desk.ledger.state
    [commit] = of(joined.trained(), CommitState)

    for state, trains in ((before, True), (commit.state, False)):
        device = Device(joined.coordinator, state=state, indexes={"r1": index})
        device.start()
        effects = device.connect()
        assert [send.header.counter for send in of(effects, SendUpdate)] == ([] if trains else [1])
        device.hear(joined.coordinator.status())
        [load] = of(device.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY)), Ask)
        assert isinstance(load.request, LoadSnapshot)  # from disk: nothing is downloaded
        assert [isinstance(ask.request, Train) for ask in of(device.answer(ModelLoaded("r1", 0)), Ask)] == (
            [True] if trains else []
        )


def test_a_device_that_lost_its_state_takes_up_above_its_old_counters(
    coordinator: ScriptedCoordinator,
) -> None:
    device = Device(coordinator)
    device.join()
    [ask] = of(device.hear(coordinator.lease("dev-1", 41)), Ask)
    assert ask.request.counter == 41
    device.trained()
    [ask] = of(device.hear(coordinator.lease("dev-1", 50)), Ask)
    assert ask.request.counter == 42


# ------------------------------------------------------------------------------------------------------ the update


def test_an_update_is_sent_again_after_a_time_on_reconnecting_and_to_a_new_epoch(joined: Device) -> None:
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    joined.trained()
    times = []
    start = joined.now
    while joined.now < start + 200:
        deadline = joined.agent.next_deadline()
        assert deadline is not None
        joined.now = deadline
        times += [joined.now - start for _ in of(joined.tell(TimePassed()), SendUpdate)]
    assert times[:6] == pytest.approx([5, 15, 35, 75, 135, 195])
    joined.tell(Disconnected("gone"))
    assert len(of(joined.connect(), SendUpdate)) == 1
    assert len(of(joined.wait(6), SendUpdate)) == 1
    joined.coordinator.restart()
    assert len(of(joined.hear(joined.coordinator.status()), SendUpdate)) == 1


def test_nothing_is_sent_often_while_the_coordinator_is_away(joined: Device) -> None:
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    joined.trained()
    joined.hear(joined.coordinator.status(online=False))
    assert "the coordinator is away" in joined.agent.waiting(now=joined.now)
    assert len(of(joined.wait(60), SendUpdate)) <= 2
    joined.coordinator.session += 1
    assert len(of(joined.hear(joined.coordinator.status()), SendUpdate)) == 1


def test_the_late_will_of_an_older_session_is_no_absence(joined: Device) -> None:
    late = joined.coordinator.status(online=False)
    joined.coordinator.session += 1
    joined.hear(joined.coordinator.status())
    joined.hear(late)
    assert joined.agent.desk.contact.coordinator_online is True


def test_what_an_older_epoch_says_is_void(joined: Device) -> None:
    old = ScriptedCoordinator(versions=joined.coordinator.versions)
    joined.coordinator.restart()
    joined.hear(joined.coordinator.status())
    assert joined.agent.desk.ledger.state.epoch == 2
    assert of(joined.hear(old.lease("dev-1", 1)), Ask) == []
    restarted = Device(
        joined.coordinator,
        state=joined.agent.desk.ledger.state,
        coordinator_key=joined.coordinator.key.public_key,
    )
    restarted.start()
    restarted.connect()
    assert quiet(restarted.hear(old.announcement())) == []


def test_a_full_outbox_gives_the_lease_back(coordinator: ScriptedCoordinator) -> None:
    device = Device(coordinator, limits=AgentLimits(federation="home", device="dev-1", outbox_limit=2))
    device.join()
    for lease in (1, 2):
        device.hear(coordinator.lease("dev-1", lease))
        device.trained()
    effects = device.hear(coordinator.lease("dev-1", 3))
    assert of(effects, Ask) == []
    [report] = bodies(effects, Report)
    assert (report.code, report.lease) == ("busy", 3)
    assert "none is trained before" in device.agent.waiting(now=device.now)
    device.hear(coordinator.receipt("dev-1", 1))
    assert of(device.hear(coordinator.lease("dev-1", 3)), Ask) == []  # it was given back
    assert of(device.hear(coordinator.lease("dev-1", 4)), Ask) != []


def test_a_refused_update_goes_back_into_the_residual_in_one_commit(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.trained()
    effects = joined.hear(joined.coordinator.receipt("dev-1", 1, residual="restore"))
    restore = Restore("r1", 1, "update-1.bin", "residual-1.bin", "restored-1.bin")
    assert quiet(effects) == [Ask(1, restore)]
    assert of(joined.wait(30), SendUpdate) == []
    commit, remove = joined.answer(ResidualRestored("r1", 1, "restored-1.bin"))
    assert isinstance(commit, CommitState)
    assert commit.state.runs["r1"].residual_file == "restored-1.bin"
    assert commit.state.runs["r1"].pending == ()
    assert remove == RemoveFiles("r1", ("residual-1.bin", "update-1.bin"))


def test_a_refusal_that_comes_while_training_waits_for_the_new_residual(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.trained()
    joined.hear(joined.coordinator.lease("dev-1", 2))
    assert of(joined.hear(joined.coordinator.receipt("dev-1", 1, residual="restore")), Ask) == []
    [ask] = of(joined.trained(), Ask)
    assert ask.request == Restore("r1", 1, "update-1.bin", "residual-2.bin", "restored-1.bin")


def test_a_discarded_update_is_gone(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.trained()
    effects = joined.hear(joined.coordinator.receipt("dev-1", 1, residual="discard"))
    assert of(effects, Ask) == []
    assert len(joined.agent.desk.outbox) == 0


def test_an_update_whose_file_is_lost_is_given_up_and_said(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.trained()
    effects = joined.tell(PayloadLost("r1", 1, "update-1.bin"))
    [report] = bodies(effects, Report)
    assert (report.code, report.run) == ("other", "r1")
    assert "update-1.bin" in report.detail
    assert [note.level for note in of(effects, Note)] == ["error"]
    assert ("r1", 1) not in joined.agent.desk.outbox
    [commit] = of(joined.wait(2), CommitState)
    assert commit.state.runs["r1"].pending == ()
    assert joined.tell(PayloadLost("r1", 1, "update-1.bin")) == []  # a second packet was queued
    # Once refused, it waits for the trainer, which will say what it cannot put back.
    joined.hear(joined.coordinator.lease("dev-1", 2))
    joined.trained()
    joined.hear(joined.coordinator.receipt("dev-1", 2, residual="restore"))
    assert joined.tell(PayloadLost("r1", 2, "update-2.bin")) == []
    assert ("r1", 2) in joined.agent.desk.outbox


def test_receipts_for_unknown_updates_change_nothing(joined: Device) -> None:
    assert joined.hear(joined.coordinator.receipt("dev-1", 9)) == []
    assert joined.hear(joined.coordinator.receipt("dev-1", 9, run="other")) == []


def test_a_large_update_is_offered(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    [send] = of(joined.trained(payload=bytes(300_000)), Send)
    assert isinstance(send.body, Offer)
    assert send.body.chunk_bytes == 131_072 - 2_048


def test_a_credit_without_room_is_waited_out_and_the_update_offered_again(joined: Device) -> None:
    joined.hear(joined.coordinator.lease("dev-1", 1))
    joined.trained(payload=bytes(300_000))
    full = Credit(run="r1", counter=1, have=b"", window=0)
    for _ in range(3):
        told = joined.hear(joined.coordinator.seal(TOPICS.down("dev-1", "credit"), full))
        assert told == []
        assert len(bodies(joined.wait(61), Offer)) >= 1
    assert joined.agent.conversation.rejected.total() == 0
    room = Credit(run="r1", counter=1, have=b"\0", window=2)
    told = joined.hear(joined.coordinator.seal(TOPICS.down("dev-1", "credit"), room))
    assert [chunk.index for chunk in of(told, SendUploadChunk)] == [0, 1]


@pytest.mark.parametrize("lost", [None, 3])
def test_ten_chunks_over_a_quick_wire_wait_for_no_timer(joined: Device, lost: int | None) -> None:
    payload = random.Random(1).randbytes(1_250_000)
    began = joined.now
    joined.hear(joined.coordinator.lease("dev-1", 1))
    [offer] = bodies(joined.trained(payload=payload), Offer)
    assembly = Assembly(offer.header.payload, offer.chunk_bytes)
    joined.coordinator.uploads["dev-1", "r1", 1] = assembly
    wire = list[SendUploadChunk]()
    order = list[int]()

    def answer() -> None:
        chunks = of(joined.hear(joined.coordinator.credit("dev-1", "r1", 1, window=4)), SendUploadChunk)
        wire.extend(chunks)
        order.extend(chunk.index for chunk in chunks)

    answer()
    while wire:
        assert len(wire) <= 4
        assert lost is not None or len(wire) == 4 or len(order) == 10, "the wire is kept busy"
        chunk = wire.pop(0)
        if chunk.index == lost and order.count(lost) == 1:
            continue
        assert assembly.add(chunk.index, payload[chunk.offset : chunk.offset + chunk.size])
        answer()
        if not wire and not assembly.complete:  # only a loss needs the clock
            assert joined.now == began
            assert len(bodies(joined.wait(6), Offer)) == 1
            answer()
    assert assembly.result() == payload
    assert order == [*range(10)] + ([] if lost is None else [lost])
    assert (joined.now == began) == (lost is None)


# ---------------------------------------------------------------------------------------------------- the model


def test_a_device_that_was_away_pulls_the_deltas_and_not_the_snapshot(joined: Device) -> None:
    joined.tell(Disconnected("gone"))
    for _ in range(6):
        joined.coordinator.publish()
    joined.connect()
    [subscribe] = of(joined.hear(joined.coordinator.announcement(inline=False)), Subscribe)
    assert subscribe.topics == tuple(TOPICS.chunk("r1", version, "delta", 0) for version in (1, 2, 3, 4))
    effects = joined.fetch()
    loads = of(effects, Ask)
    while joined.agent.desk.trainer.request is not None:
        request = joined.agent.desk.trainer.request
        assert isinstance(request, ApplyDelta)
        loads += of(joined.answer(ModelLoaded("r1", request.version)), Ask)
    assert [ask.request.version for ask in loads] == [1, 2, 3, 4, 5, 6]


def test_never_more_than_four_chunks_are_asked_for(joined: Device) -> None:
    for _ in range(20):
        joined.coordinator.publish()
    joined.hear(joined.coordinator.announcement(inline=False))
    retained = joined.coordinator.retained()
    seen = 0
    while asked := joined.asked():
        assert len(asked) <= 4
        joined.hear((asked[0], retained[asked[0]]))
        seen += 1
    assert seen == 20


def test_a_delta_announced_while_pulling_is_kept_and_joined_later(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    device.coordinator.publish()
    effects = device.hear(device.coordinator.announcement())
    assert len(of(effects, StoreBlob)) == 1
    effects = device.fetch()
    assert {topic for subscribe in of(effects, Subscribe) for topic in subscribe.topics} == {
        TOPICS.chunk("r1", 0, "snapshot", index) for index in (1, 2)
    }
    assert device.agent.desk.following is not None
    assert device.agent.desk.following.replica.held == 1


def test_what_the_broker_does_not_answer_is_asked_of_the_coordinator(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    [get] = [send for send in of(device.wait(2.5), Send) if send.topic.endswith("/get")]
    assert (get.body.version, get.body.blob, get.body.index) == (0, "snapshot", 0)
    answer = device.coordinator.chunks("snapshot", 0)[0]
    effects = device.hear(device.coordinator.seal(TOPICS.down("dev-1", "chunk"), answer))
    assert len(of(effects, WriteBlobPart)) == 1
    # The broker keeps nothing, it seems: the others are asked for both ways at once.
    assert len([send for send in of(effects, Send) if send.topic.endswith("/get")]) == 2


def test_a_model_that_cannot_be_had_is_reported_once_and_asked_for_ever(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    effects = device.wait(600)
    assert [report.code for report in bodies(effects, Report)] == ["model-unreachable"]
    gets = [send for send in of(effects, Send) if send.topic.endswith("/get")]
    assert 10 <= len(gets) <= 20


def test_at_a_rebase_the_chain_on_disk_begins_anew_with_the_snapshot_that_the_trainer_wrote(
    joined: Device,
) -> None:
    joined.coordinator.publish()
    joined.hear(joined.coordinator.announcement())
    joined.answer(ModelLoaded("r1", 1))
    version = joined.coordinator.publish(rebase=True)
    [ask] = of(joined.hear(joined.coordinator.announcement()), Ask)
    assert ask.request.rebase
    assert ask.request.snapshot_file == "base-2.bin"
    assert version.snapshot is not None
    save, remove = joined.answer(ModelLoaded("r1", 2, snapshot=blob_ref(version.snapshot)))
    assert [link.file for link in save.index.links] == ["base-2.bin"]  # type: ignore[union-attr]
    assert remove == RemoveFiles("r1", ("base-0.bin", "delta-1.bin", "delta-2.bin"))


def test_hashes_that_disagree_drop_everything_and_begin_with_the_snapshot(joined: Device) -> None:
    joined.coordinator.publish()
    joined.hear(joined.coordinator.announcement())
    effects = joined.answer(TrainerRefused("bad-model", "other bits"))
    assert of(effects, SaveModelIndex)[0].index == ModelIndex()
    assert of(effects, RemoveFiles) == [RemoveFiles("r1", ("base-0.bin", "delta-1.bin"))]
    topics = {topic for subscribe in of(effects, Subscribe) for topic in subscribe.topics}
    assert topics == {TOPICS.chunk("r1", 0, "snapshot", 0), TOPICS.chunk("r1", 1, "delta", 0)}


def test_a_model_that_never_fits_is_reported_and_tried_ever_later(joined: Device) -> None:
    effects: list[Effect] = []
    joined.coordinator.publish()
    effects += joined.hear(joined.coordinator.announcement())
    times = []
    for _ in range(5):
        effects += joined.answer(TrainerRefused("bad-model", "other bits"))
        times.append(joined.now)
        while not joined.asked():
            effects += joined.wait(0.5)
        effects += joined.fetch()
        while isinstance(joined.agent.desk.trainer.request, LoadSnapshot):
            effects += joined.answer(ModelLoaded("r1", 0))
    assert [report.code for report in bodies(effects, Report)].count("model-unreachable") == 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 8


def test_a_chunk_on_the_wrong_topic_or_with_a_lie_in_it_is_refused(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    chunk = device.coordinator.chunks("snapshot", 0)[0]
    topic = TOPICS.chunk("r1", 0, "snapshot", 0)
    device.hear(device.coordinator.seal(TOPICS.chunk("r1", 0, "snapshot", 1), chunk))
    lies = [
        chunk.model_copy(update={"count": 4}),
        chunk.model_copy(update={"ref": blob_ref(bytes(2_500))}),
        chunk.model_copy(update={"data": chunk.data * 2}),
        chunk.model_copy(update={"chain_hash": bytes(32)}),
    ]
    for lie in lies:
        effects = device.hear(device.coordinator.seal(topic, lie))
        assert of(effects, WriteBlobPart) == []
    assert device.agent.conversation.rejected["model", "bad-chunk"] == 4
    assert device.agent.conversation.rejected["model", "bad-chain"] == 1
    assert len(of(device.hear(device.coordinator.seal(topic, chunk)), WriteBlobPart)) == 1


def test_a_chunk_that_somebody_else_put_on_the_broker_is_asked_of_the_coordinator_at_once(
    device: Device,
) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    device.hear(device.coordinator.announcement())
    topic = TOPICS.chunk("r1", 0, "snapshot", 0)
    packet = bytearray(device.coordinator.retained()[topic])
    packet[len(packet) // 2] ^= 1
    effects = device.hear((topic, bytes(packet)))
    assert bodies(effects, Get) == [Get(run="r1", version=0, blob="snapshot", index=0)]
    [report] = bodies(effects, Report)
    assert report.code == "bad-message"
    assert not bodies(device.hear((topic, bytes(packet))), Get)
    chunk = device.coordinator.chunks("snapshot", 0)[0]
    effects = device.hear(device.coordinator.seal(TOPICS.down("dev-1", "chunk"), chunk))
    assert of(effects, WriteBlobPart) == [WriteBlobPart("r1", part_head(chunk), 0, chunk.data)]


# ------------------------------------------------------------------------------------------------- runs and tasks


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


# --------------------------------------------------------------------------------------------- hello and the trainer


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
    assert joined.agent.conversation.rejected.total() >= 5 * len(topics) - 4
    assert joined.agent.desk.ledger.state == state
    assert of(joined.hear(joined.coordinator.lease("dev-1", 1)), Ask) != []


# ------------------------------------------------------------------------------ the shorter form of envelopes


def packs_after(device: Device, sealer: Sealer, *, packed: bool) -> bool:
    """Whether the device packs what it sends, once a receipt has come in that form."""
    topic = TOPICS.down("dev-1", "receipt")
    body = Receipt(run="r1", counter=99, outcome="accepted", residual="keep")
    device.hear((topic, sealer.seal(topic, body, packed=packed)))
    return device.agent.desk.packs


def test_a_device_packs_once_the_coordinator_does_and_until_another_one_starts(joined: Device) -> None:
    assert not packs_after(joined, joined.coordinator.sealer, packed=False)
    assert packs_after(joined, joined.coordinator.sealer, packed=True)
    assert packs_after(joined, joined.coordinator.sealer, packed=False), "that one may be so for others' sake"
    joined.coordinator.restart()
    joined.hear(joined.coordinator.status())
    assert not joined.agent.desk.packs, "it may have been replaced by an older one"
    assert packs_after(joined, joined.coordinator.sealer, packed=True)


def test_a_forged_packet_does_not_make_a_device_pack(joined: Device) -> None:
    thief = Sealer(sender=COORDINATOR, epoch=joined.coordinator.epoch, key=SigningKey(bytes(range(1, 33))))
    assert not packs_after(joined, thief, packed=True)


def test_a_lease_in_a_run_whose_announcement_cannot_be_waits_for_a_better_one() -> None:
    coordinator = ScriptedCoordinator()
    before = Device(coordinator)
    before.join()
    state, following = before.agent.desk.ledger.state, before.agent.desk.following
    assert following is not None
    coordinator.publish()
    device = Device(coordinator, state=state, indexes={"r1": following.replica.index})
    device.start()
    device.connect()
    device.hear(coordinator.status())
    device.hear(coordinator.announcement(inline_delta=b"another"))
    device.answer(ModelLoaded("r1", 0))
    assert not of(device.hear(coordinator.lease("dev-1", 3)), Ask)
    device.hear(coordinator.announcement())
    [ask] = of(device.answer(ModelLoaded("r1", 1)), Ask)
    assert (ask.request.lease, ask.request.base_version) == (3, 1)


def test_what_the_broker_keeps_may_be_older_than_the_answer_to_a_hello(joined: Device) -> None:
    kept = joined.coordinator.announcement()
    joined.hear(kept)
    answer = joined.coordinator.announced(0, NOBODY, 60.0)
    joined.hear(joined.coordinator.seal(TOPICS.down("dev-1", "announcement"), answer))
    joined.tell(Disconnected("the broker restarts"))
    joined.connect()
    joined.hear(kept)
    assert not bodies(joined.wait(60), Hello)
