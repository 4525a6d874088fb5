"""What the broker still has is not published to it again; what cannot be proved is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fedmq_coordinator.shell.outbox import KEPT_EVERY, Outbox
from fedmq_coordinator.shell.standing import Standing
from fedmq_protocol.envelope import Sealer
from tests.coordinator.shell.test_outbox import KEY, Lazy, Link, chunks, notice, settled

SIZE = 1_024


def outbox_on(
    link: Link, standing: Standing | None = None, keep: Callable[[bytes], None] | None = None
) -> Outbox:
    link.open.set()
    made = Outbox(link, Sealer(sender="coordinator", epoch=3, key=KEY), standing=standing, keep=keep)
    made.start()
    return made


def topics(link: Link) -> list[str]:
    return [topic for topic, _, _ in link.handed]


async def publish(outbox: Outbox, blob: Lazy, count: int | None = None) -> None:
    for chunk in chunks(blob, chunk_bytes=SIZE)[:count]:
        outbox.put(chunk)
    await outbox.flush(60.0)


async def test_after_a_reconnection_only_what_lacks_is_published() -> None:
    link, blob = Link(), Lazy(10 * SIZE)
    outbox = outbox_on(link)
    assert outbox.call_witness() is None, "nothing stands anywhere yet"
    await publish(outbox, blob, 6)
    before = list(link.handed)
    outbox.drop_all()
    assert outbox.call_witness() == "m/5"
    for chunk in chunks(blob, chunk_bytes=SIZE):
        outbox.put(chunk)
    outbox.put(notice(0))
    await settled()
    assert topics(link)[6:] == ["t/0"], "words do not wait for the witness, chunks do"
    outbox.testify(before[5][1])
    await outbox.flush(60.0)
    assert topics(link)[7:] == ["m/6", "m/7", "m/8", "m/9"]
    await outbox.stop()


@pytest.mark.parametrize("said", [None, b"", b"another packet"])
async def test_without_proof_all_are_published_again(said: bytes | None) -> None:
    link, blob = Link(), Lazy(4 * SIZE)
    outbox = outbox_on(link)
    await publish(outbox, blob)
    outbox.drop_all()
    assert outbox.call_witness() == "m/3"
    outbox.testify(said)
    await publish(outbox, blob)
    assert topics(link) == [f"m/{index}" for index in range(4)] * 2
    await outbox.stop()


async def test_chunks_of_another_size_are_others() -> None:
    link, blob = Link(), Lazy(4 * SIZE)
    outbox = outbox_on(link)
    await publish(outbox, blob)
    assert outbox.call_witness() == "m/3"
    outbox.testify(link.handed[-1][1])
    for chunk in chunks(blob, chunk_bytes=2 * SIZE):
        outbox.put(chunk)
    await outbox.flush(60.0)
    assert topics(link)[4:] == ["m/0", "m/1"]
    await outbox.stop()


async def test_the_next_process_knows_what_this_one_was_told() -> None:
    link, blob = Link(), Lazy((2 * KEPT_EVERY + 5) * SIZE)
    kept: list[bytes] = []
    outbox = outbox_on(link, keep=kept.append)
    await publish(outbox, blob)
    await outbox.stop()
    assert len(kept) == 2
    sent = {topic: payload for topic, payload, _ in link.handed}
    standing = Standing.load(kept[-1])
    assert standing.num_chunks == 2 * KEPT_EVERY
    again = Link()
    outbox = outbox_on(again, standing)
    witness = outbox.call_witness()
    assert witness == f"m/{2 * KEPT_EVERY - 1}"
    outbox.testify(sent[witness])
    await publish(outbox, blob)
    assert topics(again) == [f"m/{2 * KEPT_EVERY + index}" for index in range(5)]
    await outbox.stop()
    assert blob.reads == 2 * KEPT_EVERY + 5 + 5, "what stands is not even read"


@pytest.mark.parametrize("data", [None, b"", b"\xc1", b"\x93\x01\x02\x03", b"\x92\xc0\x91\x91\x01"])
def test_what_does_not_read_is_nothing(data: bytes | None) -> None:
    assert Standing.load(data).witness is None
    assert Standing.load(data).num_chunks == 0


async def test_a_device_that_asks_is_answered_whatever_stands() -> None:
    link, blob = Link(), Lazy(3 * SIZE)
    outbox = outbox_on(link)
    await publish(outbox, blob)
    outbox.call_witness()
    outbox.put(chunks(blob, to="dev/a", chunk_bytes=SIZE)[1])
    await asyncio.wait_for(settled(), 60.0)
    assert topics(link)[3:] == ["dev/a"]
    await outbox.stop()
