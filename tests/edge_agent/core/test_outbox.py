"""Updates that need several packets: how many chunks are under way, and what silence leads to."""

from __future__ import annotations

import pytest

from fedmq_edge_agent.core.effects import Effect, Send, SendUpdate, SendUploadChunk
from fedmq_edge_agent.core.outbox import Outbox
from fedmq_edge_agent.core.state import PendingUpdate
from fedmq_protocol.chunks import Assembly, blob_ref
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import PACKET_OVERHEAD_BYTES
from fedmq_protocol.messages import Credit, Offer, Update
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.edge_agent.core.test_state import HEADER


def anything(_cost: int, _what: str) -> bool:
    return True


TOPICS = Topics("home")
PACKET = 12_000
CHUNK = PACKET - PACKET_OVERHEAD_BYTES


def make(size: int, *, metrics: dict[str, float] | None = None) -> tuple[Outbox, PendingUpdate]:
    outbox = Outbox(topics=TOPICS, device="dev-1", chance=lambda: 0.5)
    header = HEADER.model_copy(update={"payload": blob_ref(bytes(size)), "metrics": metrics or {}})
    pending = PendingUpdate(header=header, file="update-3.bin")
    outbox.add(pending, from_before=True, now=0.0)
    outbox.connected(PACKET, now=0.0)
    return outbox, pending


def credit(assembly: Assembly, window: int) -> Credit:
    return Credit(run="r1", counter=3, have=assembly.have(), window=window)


def chunks(effects: list[Effect]) -> list[int]:
    return [effect.index for effect in effects if isinstance(effect, SendUploadChunk)]


@pytest.mark.parametrize("names", [0, 60])
@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 5_000])
def test_what_is_sent_whole_fits_into_a_packet(size: int, names: int) -> None:
    metrics = {f"{name:064}": 1.0 for name in range(names)}
    outbox, _ = make(size, metrics=metrics)
    [effect] = outbox.poll(fits=anything, now=0.0)
    if isinstance(effect, SendUpdate):
        sealer = Sealer(sender="dev-1", epoch=1, key=SigningKey(b"d" * 32))
        topic = TOPICS.up("dev-1", "update")
        packet = sealer.seal(topic, Update(header=effect.header, data=bytes(size)))
        assert len(packet) + len(topic) + 16 <= PACKET
        assert size <= CHUNK
    else:
        assert isinstance(effect, Send)
        assert isinstance(effect.body, Offer)
        assert size > CHUNK - 5_000


def test_no_more_chunks_are_under_way_than_the_credit_allows() -> None:
    size = 95_000
    outbox, pending = make(size)
    [offer] = outbox.poll(fits=anything, now=0.0)
    assert isinstance(offer, Send)
    assert isinstance(offer.body, Offer)
    assembly = Assembly(pending.header.payload, offer.body.chunk_bytes)
    sent = chunks(outbox.credit(credit(assembly, 3), now=0.1))
    assert sent == [0, 1, 2]
    assert chunks(outbox.credit(credit(assembly, 3), now=0.2)) == []
    under_way, order = list(sent), list(sent)
    while not assembly.complete:
        index = under_way.pop(0)
        assembly.add(index, bytes(min(CHUNK, size - index * CHUNK)))
        more = chunks(outbox.credit(credit(assembly, 3), now=0.3))
        under_way += more
        order += more
        assert len(under_way) <= 3
    assert order == list(range(10))
    effects = outbox.credit(credit(assembly, 3), now=0.4)
    assert effects == []


def test_a_window_of_nothing_waits_and_silence_offers_again() -> None:
    outbox, pending = make(50_000)
    outbox.poll(fits=anything, now=0.0)
    assembly = Assembly(pending.header.payload, CHUNK)
    assert outbox.credit(credit(assembly, 0), now=0.1) == []
    assert outbox.poll(fits=anything, now=5.0) == []
    [again] = outbox.poll(fits=anything, now=5.2)
    assert isinstance(again, Send)
    assert isinstance(again.body, Offer)
    assembly.add(1, bytes(CHUNK))
    assert chunks(outbox.credit(credit(assembly, 9), now=5.3)) == [0, 2, 3, 4, 5]


def test_a_credit_of_an_earlier_connection_is_void() -> None:
    outbox, pending = make(50_000)
    outbox.poll(fits=anything, now=0.0)
    outbox.disconnected()
    outbox.connected(PACKET * 2, now=1.0)
    assembly = Assembly(pending.header.payload, CHUNK)
    assert outbox.credit(credit(assembly, 9), now=1.1) == []


def test_a_bitmap_of_the_wrong_size_is_refused() -> None:
    outbox, _ = make(50_000)
    outbox.poll(fits=anything, now=0.0)
    with pytest.raises(RemoteError, match="bitmap"):
        outbox.credit(Credit(run="r1", counter=3, have=bytes(9), window=1), now=0.1)


def test_what_waits_is_not_begun_together_where_only_one_of_it_fits() -> None:
    outbox, first = make(5_000)
    header = first.header.model_copy(update={"counter": 4})
    outbox.add(PendingUpdate(header=header, file="update-4.bin"), from_before=True, now=0.0)
    left = 2 * outbox_cost(5_000) - 1

    def fits(cost: int, _what: str) -> bool:
        return cost <= left

    assert counters(outbox.poll(fits=fits, left=left, now=0.0)) == [3]
    due = outbox.next_deadline()
    assert due is not None
    assert due > 0
    assert counters(outbox.poll(fits=fits, left=left, now=due)) == [
        3
    ]  # without an answer; the other waits still
    outbox.remove("r1", 3)
    due = outbox.next_deadline()
    assert due is not None
    assert counters(outbox.poll(fits=fits, left=left - outbox_cost(5_000), now=due)) == [4]


def test_what_fits_together_is_sent_together() -> None:
    outbox, first = make(5_000)
    header = first.header.model_copy(update={"counter": 4})
    outbox.add(PendingUpdate(header=header, file="update-4.bin"), from_before=True, now=0.0)
    assert counters(outbox.poll(fits=anything, left=2 * outbox_cost(5_000), now=0.0)) == [3, 4]


def outbox_cost(size: int) -> int:
    return size + PACKET_OVERHEAD_BYTES


def counters(effects: list[Effect]) -> list[int]:
    return [effect.header.counter for effect in effects if isinstance(effect, SendUpdate)]


def with_updates(count: int) -> Outbox:
    outbox, first = make(5_000)
    for counter in range(4, 3 + count):
        header = first.header.model_copy(update={"counter": counter})
        outbox.add(PendingUpdate(header=header, file=f"update-{counter}.bin"), from_before=True, now=0.0)
    return outbox


def test_out_of_turn_nothing_is_begun_until_a_long_silence() -> None:
    outbox = with_updates(2)
    outbox.turn(mine=False, everybody=False, now=0.0)
    assert outbox.waits_for_turn
    assert outbox.next_deadline() == 60.0
    outbox.turn(mine=False, everybody=False, now=50.0)  # the coordinator has not forgotten us
    assert counters(outbox.poll(fits=anything, now=60.0)) == []
    assert outbox.next_deadline() == 110.0
    assert counters(outbox.poll(fits=anything, now=110.0)) == [3]  # and no more than one
    assert outbox.next_deadline() == 115.0


def test_in_its_turn_a_device_sends_one_update_after_the_other() -> None:
    outbox = with_updates(3)
    outbox.turn(mine=True, everybody=False, now=0.0)
    assert counters(outbox.poll(fits=anything, now=0.0)) == [3]
    assert counters(outbox.poll(fits=anything, now=1.0)) == []
    outbox.remove("r1", 3)
    assert outbox.next_deadline() == 0.0
    assert counters(outbox.poll(fits=anything, now=1.0)) == [4]
    outbox.turn(mine=False, everybody=False, now=1.5)
    assert counters(outbox.poll(fits=anything, now=6.0)) == []  # what is due again waits for a turn, too
    outbox.turn(mine=True, everybody=True, now=7.0)
    assert counters(outbox.poll(fits=anything, now=7.0)) == [4, 5]


def test_an_update_that_nobody_answers_holds_up_no_other() -> None:
    outbox = with_updates(2)
    outbox.turn(mine=True, everybody=False, now=0.0)
    sent = []
    for _ in range(4):
        due = outbox.next_deadline()
        assert due is not None
        sent += counters(outbox.poll(fits=anything, now=due))
    assert sent == [3, 4, 3, 4]


def test_a_turn_while_several_are_under_way_leaves_no_deadline_that_is_over() -> None:
    chances = iter((0.0, 1.0, 0.5, 0.5, 0.5))
    _, first = make(5_000)
    outbox = Outbox(topics=TOPICS, device="dev-1", chance=lambda: next(chances))
    for counter in (3, 4):
        header = first.header.model_copy(update={"counter": counter})
        outbox.add(PendingUpdate(header=header, file=f"{counter}.bin"), from_before=True, now=0.0)
    outbox.connected(128 * 1024, now=0.0)
    assert counters(outbox.poll(fits=anything, now=0.0)) == [3, 4]
    outbox.turn(mine=True, everybody=False, now=1.0)
    assert outbox.next_deadline() == pytest.approx(6.0)  # 3 is due at 4, but 4 is under way until then
    assert counters(outbox.poll(fits=anything, now=6.1)) == [3]
    due = outbox.next_deadline()
    assert due is not None
    assert due > 6.1


def test_who_has_heard_of_turns_waits_for_those_of_a_new_epoch() -> None:
    outbox = with_updates(2)
    outbox.turn(mine=True, everybody=True, now=0.0)
    outbox.new_epoch(now=1.0)
    assert counters(outbox.poll(fits=anything, now=1.0)) == []
    outbox.turn(mine=True, everybody=False, now=2.0)
    outbox.announced()
    assert counters(outbox.poll(fits=anything, now=2.0)) == [3]


def test_an_announcement_of_a_new_epoch_without_a_turn_before_it_ends_the_waiting() -> None:
    outbox = with_updates(2)
    outbox.turn(mine=False, everybody=False, now=0.0)
    outbox.new_epoch(now=1.0)
    outbox.announced()
    assert counters(outbox.poll(fits=anything, now=1.0)) == [3, 4]


def test_who_has_never_heard_of_turns_sends_at_once_at_a_new_epoch() -> None:
    outbox = with_updates(2)
    outbox.new_epoch(now=1.0)
    assert counters(outbox.poll(fits=anything, now=1.0)) == [3, 4]


def test_chunks_go_on_out_of_turn_and_offers_do_not() -> None:
    outbox, pending = make(50_000)
    outbox.turn(mine=True, everybody=False, now=0.0)
    outbox.poll(fits=anything, now=0.0)
    outbox.turn(mine=False, everybody=False, now=0.1)
    assembly = Assembly(pending.header.payload, CHUNK)
    assert chunks(outbox.credit(credit(assembly, 2), now=0.2)) == [0, 1]
    assert outbox.poll(fits=anything, now=30.0) == []
