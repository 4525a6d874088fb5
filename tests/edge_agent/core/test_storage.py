"""A disk that takes nothing: what was refused has not happened, is said, and comes true when there is room again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from fedmq_edge_agent.core.effects import (
    Ask,
    CommitState,
    Effect,
    FinishBlob,
    Note,
    PinCoordinator,
    RemoveFiles,
    Restore,
    SaveModelIndex,
    SendUpdate,
    StoreBlob,
    Subscribe,
    Train,
    TryDisk,
    WriteBlobPart,
    Written,
    relies_on_commit,
)
from fedmq_edge_agent.core.events import (
    BlobFinished,
    DiskMended,
    DiskRefused,
    ModelLoaded,
    ResidualRestored,
    TrainerRefused,
)
from fedmq_edge_agent.core.outbox import Outbox
from fedmq_edge_agent.core.state import PendingUpdate
from fedmq_edge_agent.disk_faults import DiskFault
from fedmq_protocol.messages import Presence, Report
from fedmq_protocol.topics import Topics
from tests.edge_agent.core.driven import Device, bodies, of
from tests.edge_agent.core.test_state import HEADER
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator

FULL = "the disk is full; make room on it: cannot write /var/lib/fedmq/state"
Refuses = Callable[[Written], bool]


def everything(_: Written) -> bool:
    return True


def nothing(_: Written) -> bool:
    return False


class OnDisk(Device):
    """A device with a shell's way with the disk; `done` is what really came about."""

    def __init__(self, coordinator: ScriptedCoordinator, **changes: Any) -> None:
        super().__init__(coordinator, **changes)
        self.refuses: Refuses = nothing
        self.fault: DiskFault = "full"
        self.done: list[Effect] = []

    def tell(self, event: Any) -> list[Effect]:
        done: list[Effect] = []
        following = event
        while following is not None:
            effects = super().tell(following) if following is event else self._more(following)
            refused: list[Written] = []
            for effect in effects:
                if relies_on_commit(effect) and any(isinstance(other, CommitState) for other in refused):
                    continue
                if isinstance(effect, Written) and self.refuses(effect):
                    refused.append(effect)
                else:
                    done.append(effect)
            following = None
            if refused:
                following = DiskRefused(tuple(refused), self.fault, FULL)
            elif of(effects, TryDisk):
                following = DiskMended()
        deadline = self.agent.next_deadline()
        assert deadline is None or deadline > self.now
        self.done += done
        return done

    def _more(self, event: Any) -> list[Effect]:
        return self.agent.handle(event, now=self.now)

    @property
    def problem(self) -> str:
        return self.agent.presence(online=True, session=1).problem


@pytest.fixture
def device() -> OnDisk:
    return OnDisk(ScriptedCoordinator())


@pytest.fixture
def joined(device: OnDisk) -> OnDisk:
    device.join()
    device.wait(2.0)
    return device


def lease(device: OnDisk, number: int) -> list[Effect]:
    return device.hear(device.coordinator.announcement(lease=number, cohort=EVERYBODY))


def test_an_update_that_could_not_be_committed_is_not_sent_before_it_is(joined: OnDisk) -> None:
    lease(joined, 1)
    joined.refuses = everything
    told = joined.trained()
    assert of(told, SendUpdate) == []
    assert [presence.problem for presence in bodies(told, Presence)] == [FULL]
    assert [note.level for note in of(told, Note) if note.text == FULL] == ["error"]
    assert "1 update not sent before the disk has them" in joined.agent.waiting(now=joined.now)
    assert of(joined.wait(100.0), SendUpdate) == []
    joined.refuses = nothing
    told = joined.wait(300.0)
    sent, commits = of(told, SendUpdate)[0], of(told, CommitState)
    assert told.index(commits[0]) < told.index(sent)
    assert [pending.header for pending in commits[0].state.runs["r1"].pending] == [sent.header]
    assert bodies(told, Presence)[-1].problem == ""
    assert joined.problem == ""


def test_a_training_that_ends_while_the_state_cannot_be_written_is_not_sent(joined: OnDisk) -> None:
    lease(joined, 1)
    joined.trained()
    lease(joined, 2)
    joined.refuses, joined.fault = everything, "read-only"
    joined.hear(joined.coordinator.receipt("dev-1", 1))
    joined.wait(1.5)  # the receipt cannot be written down
    assert joined.problem == FULL
    told = joined.trained() + joined.wait(30.0)
    assert of(told, SendUpdate) == []
    joined.refuses = nothing
    told = joined.wait(60.0)
    assert {update.header.counter for update in of(told, SendUpdate)} == {2}
    assert [one.header.counter for one in of(told, CommitState)[0].state.runs["r1"].pending] == [2]


def test_it_is_tried_again_ever_later_and_no_later_than_every_five_minutes(joined: OnDisk) -> None:
    lease(joined, 1)
    attempts: list[float] = []

    def count(effect: Written) -> bool:
        if isinstance(effect, CommitState):
            attempts.append(joined.now)
        return True

    joined.refuses, joined.fault = count, "read-only"
    joined.trained()
    joined.wait(3_000.0)
    gaps = [round(after - before) for before, after in itertools.pairwise(attempts)]
    assert gaps[:9] == [2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(gaps[8:]) == {300}


def test_a_lease_that_could_not_be_committed_is_given_back(joined: OnDisk) -> None:
    lease(joined, 1)
    joined.refuses = everything
    joined.trained()
    told = lease(joined, 2)
    assert not [ask for ask in of(told, Ask) if isinstance(ask.request, Train)]
    [report] = bodies(told, Report)
    assert (report.code, report.lease, report.detail) == ("busy", 2, FULL)


def test_receipts_are_heeded_though_they_cannot_be_written_down(joined: OnDisk) -> None:
    lease(joined, 1)
    joined.trained()
    joined.refuses, joined.fault = everything, "failing"
    told = joined.hear(joined.coordinator.receipt("dev-1", 1))
    told += joined.wait(60.0)
    assert of(told, RemoveFiles) == [], "on disk it is still in the outbox: its file must stay"
    assert of(told, SendUpdate) == []
    assert len(joined.agent.desk.outbox) == 0
    joined.refuses = nothing
    told = joined.wait(120.0)
    assert of(told, CommitState)[-1].state.runs["r1"].pending == ()
    assert "update-1.bin" in of(told, RemoveFiles)[0].names


def test_what_is_durable_goes_on_being_sent(joined: OnDisk) -> None:
    lease(joined, 1)
    joined.trained()
    joined.refuses = everything
    lease(joined, 2)
    joined.trained()
    told = joined.wait(60.0)
    assert {update.header.counter for update in of(told, SendUpdate)} == {1}


def test_a_training_that_found_no_room_is_no_failure_of_the_trainer(joined: OnDisk) -> None:
    lease(joined, 1)
    refused = TrainerRefused("disk-full", FULL, room_bytes=4_000_000)
    joined.refuses = lambda effect: isinstance(effect, TryDisk)
    told = joined.answer(refused)
    [report] = bodies(told, Report)
    assert (report.code, report.lease) == ("busy", 1)
    assert (joined.agent.desk.trainer.failures, joined.problem) == (0, FULL)
    joined.refuses = nothing
    told = joined.wait(10.0)
    assert of(told, TryDisk) == [TryDisk(4_000_000)]
    assert joined.problem == ""
    [ask] = of(lease(joined, 2), Ask)
    assert (ask.request.lease, ask.request.counter) == (2, 2)


def test_a_refused_update_is_put_back_once_there_is_room(joined: OnDisk) -> None:
    lease(joined, 1)
    joined.trained()
    [ask] = of(joined.hear(joined.coordinator.receipt("dev-1", 1, residual="restore")), Ask)
    assert isinstance(ask.request, Restore)
    joined.refuses = everything
    joined.answer(TrainerRefused("disk-full", FULL, room_bytes=1_000))
    assert len(joined.agent.desk.outbox) == 1, "its mass is nowhere else"
    assert of(joined.wait(60.0), Ask) == []
    joined.refuses = nothing
    # For so precious a thing the chain was given up: it is fetched again, while the mass goes back.
    joined.wait(70.0)
    assert joined.agent.desk.trainer.request == ask.request
    told = joined.answer(ResidualRestored("r1", 1, "restored-1.bin"))
    assert of(told, CommitState)[-1].state.runs["r1"].residual_file == "restored-1.bin"
    assert len(joined.agent.desk.outbox) == 0


def test_model_files_of_other_runs_go_first_and_then_it_is_tried_at_once(joined: OnDisk) -> None:
    coordinator = joined.coordinator
    lease(joined, 1)
    joined.trained()  # the run stays known as long as its update has no receipt
    before = coordinator.run
    coordinator.begin("r2")
    joined.hear(coordinator.announcement())
    joined.fetch()
    joined.answer(ModelLoaded("r2", 0))
    room = [False]

    def refuses(effect: Written) -> bool:
        return not room[0]

    joined.refuses = refuses
    lease(joined, 2)
    effects = joined.agent.handle(DiskRefused((), "full", FULL), now=joined.now)
    [removed] = of(effects, RemoveFiles)
    assert removed == RemoveFiles(before, ("model.idx", "base-0.bin"))
    assert effects.index(removed) < effects.index(TryDisk(0))


def test_the_followed_chain_goes_for_the_state_alone_and_is_fetched_again(joined: OnDisk) -> None:
    lease(joined, 1)
    gone: list[Effect] = []
    joined.refuses = lambda effect: not any(isinstance(one, RemoveFiles) for one in gone)
    effects = joined.trained()
    gone += effects
    assert of(effects, RemoveFiles)[0] == RemoveFiles("r1", ("base-0.bin",))
    joined.refuses = nothing
    told = joined.wait(10.0)
    assert of(told, SendUpdate)
    assert of(told, Subscribe), "the snapshot is asked for again"
    told += joined.fetch()
    assert of(told, SaveModelIndex)
    asks = [ask.request for ask in of(told, Ask)]
    assert asks[-1].version == 0


def test_files_that_are_of_no_use_already_go_with_the_chain(joined: OnDisk) -> None:
    """Whatever was left over while the disk took nothing could not be removed yet."""
    lease(joined, 1)
    joined.refuses = lambda effect: isinstance(effect, TryDisk)
    joined.answer(TrainerRefused("disk-full", FULL, room_bytes=4_000_000))
    following = joined.agent.desk.following
    assert following is not None
    joined.agent.desk.do(*following.start_over("hashes disagree", now=joined.now))
    [removed] = of(following.give_up_files(now=joined.now), RemoveFiles)
    assert removed.names == ("base-0.bin",)


def test_a_read_only_disk_costs_no_model_file(joined: OnDisk) -> None:
    lease(joined, 1)
    joined.refuses, joined.fault = everything, "read-only"
    assert of(joined.trained() + joined.wait(60.0), RemoveFiles) == []
    assert joined.agent.desk.following is not None
    assert joined.agent.desk.following.replica.held == 0


def test_a_delta_that_was_not_written_is_fetched_later_and_costs_no_snapshot(joined: OnDisk) -> None:
    coordinator = joined.coordinator
    coordinator.publish()
    joined.refuses, joined.fault = lambda effect: isinstance(effect, StoreBlob | TryDisk), "quota"
    told = joined.hear(coordinator.announcement())
    [ask] = of(told, Ask)  # was asked for before it was known
    joined.answer(TrainerRefused("bad-model", "the file delta-1.bin is not what was stored"))
    coordinator.publish()
    assert of(joined.hear(coordinator.announcement()), StoreBlob) == [], "nothing is written meanwhile"
    assert joined.asked() == []
    joined.answer(ModelLoaded("r1", 0))
    joined.refuses = nothing
    joined.wait(10.0)
    assert joined.asked() == [joined.agent.desk.topics.chunk("r1", version, "delta", 0) for version in (1, 2)]
    told = joined.fetch()
    assert {(blob.blob, blob.version) for blob in of(told, StoreBlob)} == {("delta", 1), ("delta", 2)}
    assert ask.request.version == 1


def test_chunks_that_were_not_written_are_fetched_later_and_the_others_are_not(device: OnDisk) -> None:
    coordinator = device.coordinator
    device.start()
    device.connect()
    device.hear(coordinator.status())
    device.hear(coordinator.announcement())
    retained = coordinator.retained()
    [first] = device.asked()
    device.hear((first, retained[first]))
    second, third = device.asked()
    device.refuses = lambda effect: isinstance(effect, WriteBlobPart | TryDisk)
    device.hear((second, retained[second]))
    assert device.asked() == []
    assert device.hear((third, retained[third])) == [], "what comes meanwhile is not kept"
    device.refuses = nothing
    device.wait(5.0)
    assert device.asked() == [second, third]
    assert of(device.done, TryDisk) == [TryDisk(len(coordinator.blob("snapshot", 0)))]


def test_a_file_that_could_not_be_put_in_place_is_put_there_later(device: OnDisk) -> None:
    coordinator = device.coordinator
    device.start()
    device.connect()
    device.hear(coordinator.status())
    device.hear(coordinator.announcement())
    retained, finishes = coordinator.retained(), list[Effect]()
    while asked := device.asked():
        for topic in asked:
            finishes += of(device.hear((topic, retained[topic])), FinishBlob)
    [finish] = finishes
    assert isinstance(finish, FinishBlob)
    device.refuses = lambda effect: isinstance(effect, TryDisk)
    device.tell(DiskRefused((finish,), "failing", "look at its health"))
    device.refuses = nothing
    assert of(device.wait(5.0), FinishBlob) == [finish]
    told = device.tell(BlobFinished("r1", "snapshot", 0, ok=True))
    assert [ask.request.version for ask in of(told, Ask)] == [0]


def test_the_coordinators_key_is_believed_and_pinned_as_soon_as_that_can_be_done(device: OnDisk) -> None:
    device.refuses, device.fault = everything, "read-only"
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    assert device.agent.conversation.inbox.coordinator_key == device.coordinator.key.public_key
    device.refuses = nothing
    assert PinCoordinator(device.coordinator.key.public_key) in device.wait(10.0)


def test_with_a_read_only_disk_from_the_start_the_device_says_so_and_waits() -> None:
    device = OnDisk(ScriptedCoordinator())
    device.refuses, device.fault = everything, "read-only"
    device.start()
    told = device.connect()
    assert bodies(told, Presence)[-1].problem == FULL
    waits = device.agent.waiting(now=device.now)
    assert waits.startswith(f"{FULL} (for ")
    assert "tried again in" in waits


def test_an_update_is_heard_of_once_it_is_committed_and_no_earlier() -> None:
    outbox = Outbox(topics=Topics("home"), device="dev-1", chance=lambda: 0.5)
    outbox.connected(131_072, now=0.0)
    outbox.add(PendingUpdate(header=HEADER, file="update-3.bin"), now=0.0)
    assert outbox.next_deadline() is None
    assert outbox.poll(fits=lambda *_: True, now=0.0) == []
    outbox.commit(lambda run, counter: (run, counter) == ("r1", 3))
    assert outbox.poll(fits=lambda *_: True, now=0.0) == [SendUpdate(HEADER, "update-3.bin")]
