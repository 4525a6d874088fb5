"""Each kind of message that a coordinator sends: altered, forged, moved, repeated, or of an epoch that is over."""

from __future__ import annotations

import msgpack
import pytest

from fedmq_edge_agent.core.effects import CommitState, Reconnect, relies_on_commit
from fedmq_edge_agent.core.events import Disconnected, DiskMended, DiskRefused
from fedmq_edge_agent.core.inbox import Inbox, StaleError
from fedmq_edge_agent.core.state import AgentState
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.envelope import COORDINATOR, Sealer
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_COUNTER
from fedmq_protocol.messages import Body, Credit, Lease, ModelChunk, Notice, Receipt, Status
from fedmq_protocol.replays import ReplayError
from fedmq_protocol.signing import SigningKey
from tests.edge_agent.core.driven import TOPICS, Device, of, quiet
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator

COORDINATOR_KEY = SigningKey(b"c" * 32)
THIEF = SigningKey(b"t" * 32)
EPOCH = 5


def announcement(coordinator: ScriptedCoordinator) -> Body:
    return coordinator.announced(3, EVERYBODY, 60.0)


def sayings() -> dict[str, tuple[str, Body]]:
    """Topic and body of each kind."""
    scripted = ScriptedCoordinator(key=COORDINATOR_KEY)
    chunk = ModelChunk(
        run="r1",
        version=1,
        blob="delta",
        index=0,
        count=1,
        ref=blob_ref(b"x"),
        chain_hash=bytes(32),
        data=b"x",
    )
    status = Status(online=True, session=EPOCH, public_key=COORDINATOR_KEY.public_key)
    return {
        "status": (TOPICS.coordinator_status, status),
        "announcement": (TOPICS.announcement, announcement(scripted)),
        "announcement by hand": (TOPICS.down("dev-1", "announcement"), announcement(scripted)),
        "chunk": (TOPICS.chunk("r1", 1, "delta", 0), chunk),
        "chunk by hand": (TOPICS.down("dev-1", "chunk"), chunk),
        "lease": (TOPICS.down("dev-1", "lease"), Lease(run="r1", lease=3, version=0, lease_s=60.0)),
        "receipt": (
            TOPICS.down("dev-1", "receipt"),
            Receipt(run="r1", counter=3, outcome="accepted", residual="keep"),
        ),
        "credit": (TOPICS.down("dev-1", "credit"), Credit(run="r1", counter=3, have=b"\0", window=4)),
        "notice": (TOPICS.down("dev-1", "notice"), Notice(code="malformed", detail="no")),
    }


SAYINGS = sayings()
ONCE = ("lease", "receipt", "credit", "notice")
RETAINED = ("status", "announcement", "announcement by hand", "chunk", "chunk by hand")


@pytest.fixture
def inbox() -> Inbox:
    key = COORDINATOR_KEY.public_key
    return Inbox(topics=TOPICS, device="dev-1", coordinator_key=key, epoch=EPOCH, epoch_of=key)


def sealer(*, key: SigningKey = COORDINATOR_KEY, sender: str = COORDINATOR, epoch: int = EPOCH) -> Sealer:
    return Sealer(sender=sender, epoch=epoch, key=key)


def refusal(inbox: Inbox, topic: str, data: bytes) -> str:
    with pytest.raises(RemoteError) as caught:
        inbox.open(topic, data)
    return caught.value.reason


def test_every_kind_is_here() -> None:
    assert {*ONCE, *RETAINED} == {*SAYINGS}


@pytest.mark.parametrize("kind", ONCE)
def test_what_is_not_retained_is_taken_once(inbox: Inbox, kind: str) -> None:
    topic, body = SAYINGS[kind]
    first, second = (sealer().seal(topic, body), sealer(epoch=EPOCH + 1).seal(topic, body))
    inbox.open(topic, first)
    for _ in range(3):
        with pytest.raises(ReplayError) as caught:
            inbox.open(topic, first)
        assert caught.value.reason == "replayed"
    inbox.open(topic, second)
    assert refusal(inbox, topic, first) == "old-epoch"


@pytest.mark.parametrize("kind", RETAINED)
def test_what_is_retained_may_come_again(inbox: Inbox, kind: str) -> None:
    topic, body = SAYINGS[kind]
    data = sealer().seal(topic, body)
    assert inbox.open(topic, data) == inbox.open(topic, data)


@pytest.mark.parametrize("kind", sorted(set(SAYINGS) - {"chunk", "chunk by hand"}))
def test_an_epoch_that_is_over_stays_over(inbox: Inbox, kind: str) -> None:
    topic, body = SAYINGS[kind]
    if isinstance(body, Status):
        body = body.model_copy(update={"session": EPOCH - 1})
    with pytest.raises(StaleError) as caught:
        inbox.open(topic, sealer(epoch=EPOCH - 1).seal(topic, body))
    assert caught.value.reason == "old-epoch"


@pytest.mark.parametrize("kind", SAYINGS)
class TestEachKind:
    def test_altered_in_any_part_is_refused(self, inbox: Inbox, kind: str) -> None:
        topic, body = SAYINGS[kind]
        content, signature = msgpack.unpackb(sealer().seal(topic, body))
        fields = msgpack.unpackb(content)
        for place in (3, 4):  # epoch and sequence
            other = [*fields[:place], fields[place] + 1, *fields[place + 1 :]]
            assert refusal(inbox, topic, msgpack.packb([msgpack.packb(other), signature])) == "bad-signature"
        flipped = bytes([signature[0] ^ 1]) + signature[1:]
        assert refusal(inbox, topic, msgpack.packb([content, flipped])) == "bad-signature"

    def test_under_another_key_is_refused(self, inbox: Inbox, kind: str) -> None:
        topic, body = SAYINGS[kind]
        forged = sealer(key=THIEF).seal(topic, body)
        assert refusal(inbox, topic, forged) == "bad-signature"
        content, signature = msgpack.unpackb(forged)
        fields = msgpack.unpackb(content)
        fields[5] = COORDINATOR_KEY.key_id
        assert refusal(inbox, topic, msgpack.packb([msgpack.packb(fields), signature])) == "bad-signature"

    def test_by_another_sender_is_refused(self, inbox: Inbox, kind: str) -> None:
        topic, body = SAYINGS[kind]
        assert refusal(inbox, topic, sealer(sender="dev-2").seal(topic, body)) == "wrong-sender"

    def test_moved_to_another_topic_is_refused(self, inbox: Inbox, kind: str) -> None:
        topic, body = SAYINGS[kind]
        data = sealer().seal(topic, body)
        places = [other for name, (other, _) in SAYINGS.items() if other != topic]
        assert all(refusal(inbox, place, data) in {"wrong-kind", "bad-signature"} for place in places)
        for_another = sealer().seal(topic.replace("dev-1", "dev-2").replace("home", "work"), body)
        assert refusal(inbox, topic, for_another) == "bad-signature"


def test_an_older_announcement_is_refused_on_either_topic_and_after_a_restart() -> None:
    coordinator = ScriptedCoordinator()
    device = Device(coordinator)
    device.join()
    old = coordinator.announcement(cohort=EVERYBODY, lease=1)
    coordinator.publish()
    device.hear(coordinator.announcement(cohort=EVERYBODY, lease=2))
    device.agent.desk.ledger.commit(device.agent.desk.budget.keep())
    state = device.agent.desk.ledger.state
    assert state.announced > 0
    assert device.agent.desk.announcement is not None
    assert device.agent.desk.announcement.lease == 2
    device.hear(old)
    assert device.agent.desk.announcement.lease == 2

    again = Device(coordinator, state=state, coordinator_key=coordinator.key.public_key)
    again.start()
    again.connect()
    again.hear(old)
    assert again.agent.desk.announcement is None
    again.hear(coordinator.announcement(cohort=EVERYBODY, lease=3))
    assert again.agent.desk.announcement is not None


def test_an_announcement_s_place_counts_within_its_epoch_alone() -> None:
    key = COORDINATOR_KEY.public_key
    inbox = Inbox(topics=TOPICS, device="dev-1", coordinator_key=key, epoch=5, epoch_of=key, announced=90)
    topic, body = SAYINGS["announcement"]
    assert refusal(inbox, topic, sealer(epoch=5).seal(topic, body)) == "old-announcement"
    assert inbox.open(topic, sealer(epoch=6).seal(topic, body)).sequence == 1
    other = Inbox(
        topics=TOPICS, device="dev-1", coordinator_key=key, epoch=5, epoch_of=bytes(32), announced=90
    )
    assert other.open(topic, sealer(epoch=1).seal(topic, body)).epoch == 1


def test_a_lease_that_is_repeated_trains_nothing_again() -> None:
    coordinator = ScriptedCoordinator()
    device = Device(coordinator)
    device.join()
    topic = TOPICS.down("dev-1", "lease")
    lease = coordinator.seal(topic, Lease(run="r1", lease=4, version=0, lease_s=60.0))
    device.hear(lease)
    device.trained()
    assert device.agent.desk.leases.held is None
    device.hear(lease)
    anew = coordinator.seal(topic, Lease(run="r1", lease=4, version=0, lease_s=60.0))
    device.hear(anew)
    assert device.agent.desk.leases.held is None
    assert device.agent.desk.trainer.request is None


def test_state_without_the_place_of_an_announcement_is_read() -> None:
    assert AgentState.model_validate({"session": 3, "epoch": 2}).announced == 0


# ---------------------------------------------------------------------------------- a session of the past


def test_it_goes_on_above_the_sessions_that_the_coordinator_knows(joined: Device) -> None:
    session = joined.agent.session
    assert session is not None
    effects = quiet(joined.hear(joined.coordinator.notice("dev-1", session=session + 1_000)))
    commit, reconnect = effects
    assert isinstance(commit, CommitState)
    assert commit.state.session > session + 1_000, "a restart begins above it, too"
    assert reconnect == Reconnect(session)
    assert relies_on_commit(reconnect)
    joined.tell(Disconnected("dropped"))
    joined.connect()
    assert joined.agent.session is not None
    assert joined.agent.session > session + 1_000


@pytest.mark.parametrize("back", [0, 1])
def test_a_session_that_it_has_reached_asks_nothing_of_it(joined: Device, back: int) -> None:
    session = joined.agent.session
    assert session is not None
    assert quiet(joined.hear(joined.coordinator.notice("dev-1", session=session - back))) == []


def test_the_same_notice_again_is_refused(joined: Device) -> None:
    session = joined.agent.session
    assert session is not None
    notice = joined.coordinator.notice("dev-1", session=session + 10)
    joined.hear(notice)
    joined.tell(Disconnected("dropped"))
    joined.connect()
    assert of(joined.hear(notice), Reconnect) == []
    assert joined.agent.conversation.rejected["notice", "replayed"] == 1


def test_a_number_that_leaves_no_room_is_refused(joined: Device) -> None:
    assert of(joined.hear(joined.coordinator.notice("dev-1", session=MAX_COUNTER)), Reconnect) == []
    assert joined.agent.conversation.rejected["notice", "bad-session"] == 1


def test_it_stays_while_the_disk_does_not_take_the_number(joined: Device) -> None:
    session = joined.agent.session
    assert session is not None
    commits = of(joined.hear(joined.coordinator.notice("dev-1", session=session + 1_000)), CommitState)
    joined.tell(DiskRefused(tuple(commits), "failing", "Input/output error"))
    assert of(joined.hear(joined.coordinator.notice("dev-1", session=session + 1_000)), Reconnect) == []
    joined.tell(DiskMended())
    assert of(joined.hear(joined.coordinator.notice("dev-1", session=session + 1_000)), Reconnect) == [
        Reconnect(session)
    ]
