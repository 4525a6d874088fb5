"""An update on its way, event by event: committed, sent, sent again, and its receipts."""

from __future__ import annotations

import random

import pytest

from fedmq_edge_agent.core.effects import (
    Ask,
    CommitState,
    Note,
    RemoveFiles,
    Restore,
    Send,
    SendUpdate,
    SendUploadChunk,
)
from fedmq_edge_agent.core.events import Disconnected, PayloadLost, ResidualRestored, TimePassed
from fedmq_edge_agent.core.machine import AgentLimits
from fedmq_protocol.chunks import Assembly, blob_ref
from fedmq_protocol.messages import Credit, Offer, Report
from tests.edge_agent.core.driven import PAYLOAD, TOPICS, Device, bodies, of, quiet
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator


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


@pytest.mark.parametrize("residual", ["keep", "restore", "discard"])
def test_a_receipt_for_another_update_of_the_number_is_ignored(joined: Device, residual: str) -> None:
    """It answers what was sent before the disk was replaced; the update that is here gets its own."""
    joined.hear(joined.coordinator.announcement(lease=1, cohort=EVERYBODY))
    joined.trained()
    digest = blob_ref(PAYLOAD).sha256[:8]
    other = bytes(byte ^ 1 for byte in digest)
    effects = joined.hear(joined.coordinator.receipt("dev-1", 1, residual=residual, digest=other))
    assert quiet(effects) == []
    assert joined.agent.desk.outbox.is_to_be_sent(joined.coordinator.run, 1)
    assert len(of(joined.wait(10), SendUpdate)) == 1
    joined.hear(joined.coordinator.receipt("dev-1", 1, digest=digest))
    assert len(joined.agent.desk.outbox) == 0
