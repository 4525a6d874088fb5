"""The device's machine, event by event, with the effects that it must ask for: from the start to the first lease."""

from __future__ import annotations

from fedmq_edge_agent.core.effects import (
    ApplyDelta,
    Ask,
    CommitState,
    FinishBlob,
    LoadSnapshot,
    Note,
    OpenTask,
    PinCoordinator,
    RemoveFiles,
    SaveModelIndex,
    Send,
    SendUpdate,
    StartTrainer,
    StoreBlob,
    Subscribe,
    Train,
    Unsubscribe,
    WriteBlobPart,
)
from fedmq_edge_agent.core.events import AgentStarted, BlobFinished, Disconnected, ModelLoaded, TrainerStarted
from fedmq_edge_agent.core.state import AgentState, ModelIndex, Part
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.envelope import COORDINATOR, Sealer
from fedmq_protocol.messages import Cohort, Hello, Presence, Receipt, Report, TrainSettings
from fedmq_protocol.signing import SigningKey
from tests.edge_agent.core.driven import KEY, OPENED, TOPICS, Device, bodies, make_agent, of, part_head, quiet
from tests.edge_agent.scripted import EVERYBODY, NOBODY, TASK, UPLOAD, ScriptedCoordinator


def test_a_start_reserves_session_numbers_and_starts_the_trainer(device: Device) -> None:
    assert device.tell(AgentStarted()) == [
        CommitState(AgentState(identity=KEY.public_key, session=100)),
        StartTrainer(1),
    ]
    assert device.tell(TrainerStarted(1)) == [Ask(1, OpenTask())]


def test_the_birth_certificate_follows_each_connection_and_each_change(device: Device) -> None:
    device.tell(AgentStarted())
    topic = TOPICS.presence("dev-1")
    opening = Presence(
        online=True,
        session=1,
        public_key=KEY.public_key,
        codecs=["digest/1"],
        problem="the task is being opened",
    )
    assert device.connect() == [Send(topic, opening, retain=True)]
    device.tell(TrainerStarted(1))
    certificate = Presence(
        online=True,
        session=1,
        public_key=KEY.public_key,
        tasks=[TASK],
        codecs=["topk-log4", "packed/1", "digest/1"],
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


def test_what_was_retained_and_is_cleared_is_no_message(device: Device) -> None:
    device.start()
    device.connect()
    device.hear(device.coordinator.status())
    for topic in (TOPICS.coordinator_status, TOPICS.announcement):
        assert quiet(device.hear((topic, b""))) == []
    assert not device.agent.conversation.rejected


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
