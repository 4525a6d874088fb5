"""The outbox against a broker link that answers when the test says so."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from fedmq_coordinator.core.blobs import Blob, MemoryBlob
from fedmq_coordinator.core.effects import Clear, Send, SendChunk
from fedmq_coordinator.shell import outbox as outbox_module
from fedmq_coordinator.shell.outbox import Outbox
from fedmq_coordinator.shell.store_database import AwayError
from fedmq_protocol.aio import RefusedError
from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import ConnectionFailedError, StoreError
from fedmq_protocol.limits import MAX_CHUNK_BYTES
from fedmq_protocol.messages import ModelChunk, Notice
from fedmq_protocol.signing import SigningKey

KEY = SigningKey(bytes(32))


class Link:
    """Notes what is handed over; acknowledges while `open`."""

    def __init__(self) -> None:
        self.handed: list[tuple[str, bytes, bool]] = []
        self.open = asyncio.Event()
        self.fails: Exception | None = None

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.handed.append((topic, payload, retain))
        await self.open.wait()
        if self.fails is not None:
            raise self.fails


@pytest.fixture
async def link() -> Link:
    return Link()


@pytest.fixture
async def outbox(link: Link) -> AsyncIterator[Outbox]:
    made = Outbox(link, Sealer(sender="coordinator", epoch=3, key=KEY))
    made.start()
    yield made
    await made.stop()


def notice(number: int) -> Send:
    return Send(f"t/{number % 3}", Notice(code="n", detail=str(number)))


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_messages_leave_side_by_side_in_the_order_of_their_making(link: Link, outbox: Outbox) -> None:
    for number in range(100):
        outbox.put(notice(number))
    await settled()
    assert len(link.handed) == 32  # none is acknowledged yet
    link.open.set()
    await outbox.flush(60.0)
    envelopes = [open_envelope(topic, payload).verified(KEY.public_key) for topic, payload, _ in link.handed]
    assert [envelope.sequence for envelope in envelopes] == list(range(1, 101))
    assert [envelope.body for envelope in envelopes] == [notice(number).body for number in range(100)]
    assert {envelope.epoch for envelope in envelopes} == {3}


async def test_clear_is_nothing_retained(link: Link, outbox: Outbox) -> None:
    link.open.set()
    outbox.put(Clear("t"))
    outbox.put(Send("u", Notice(code="n", detail=""), retain=True))
    await outbox.flush(60.0)
    assert [(topic, retain) for topic, _, retain in link.handed] == [("u", True), ("t", True)]
    assert link.handed[1][1] == b""


async def test_what_is_queued_when_the_connection_goes_is_dropped(link: Link, outbox: Outbox) -> None:
    link.fails = ConnectionFailedError("gone")
    for number in range(100):
        outbox.put(notice(number))
    await settled()
    outbox.drop_all()
    link.open.set()
    await outbox.flush(60.0)
    assert len(link.handed) == 32
    link.fails = None
    outbox.put(notice(7))
    await outbox.flush(60.0)
    assert len(link.handed) == 33


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionFailedError("gone"), None),
        (RefusedError("not authorised"), "refuses what the coordinator says on t/0: not authorised"),
        (ValueError("a packet of 9 bytes"), "not sent: a packet of 9 bytes"),
        (RuntimeError("a bug"), "a message could not be published"),
    ],
)
async def test_a_failure_is_told_by_whose_it_is_and_nothing_stops(
    link: Link, outbox: Outbox, caplog: pytest.LogCaptureFixture, error: Exception, said: str | None
) -> None:
    link.open.set()
    link.fails = error
    outbox.put(notice(0))
    await outbox.flush(60.0)
    assert (said in caplog.text) if said is not None else (caplog.text == "")
    link.fails = None
    outbox.put(notice(1))
    await outbox.flush(60.0)
    assert len(link.handed) == 2


async def test_a_full_queue_drops_and_says_so_once(
    link: Link, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_WORDS", 10)
    for number in range(40):
        outbox.put(notice(number))
    link.open.set()
    await outbox.flush(60.0)
    assert len(link.handed) == 10
    assert caplog.text.count("messages wait for the broker") == 1


class Lazy(MemoryBlob):
    """Counts what was read of it."""

    def __init__(self, size: int) -> None:
        super().__init__(bytes(size))
        self.reads = 0

    def read(self, start: int, length: int) -> bytes:
        self.reads += 1
        return super().read(start, length)


CHUNK_BYTES = MAX_CHUNK_BYTES


def chunks(blob: Blob, *, to: str | None = None, chunk_bytes: int = CHUNK_BYTES) -> list[SendChunk]:
    """All chunks of a snapshot: to be retained, or asked for by a device."""
    count = -(-blob.ref.size // chunk_bytes)
    head = ModelChunk(
        run="r",
        version=3,
        blob="snapshot",
        index=0,
        count=count,
        ref=blob.ref,
        chain_hash=bytes(32),
        data=b"",
    )
    return [
        SendChunk(f"m/{index}" if to is None else to, head, blob, index, chunk_bytes, retain=to is None)
        for index in range(count)
    ]


class SlowLink(Link):
    """Acknowledges one message at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Future[None]] = []

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.handed.append((topic, payload, retain))
        acknowledged = asyncio.get_running_loop().create_future()
        self.waiting.append(acknowledged)
        await acknowledged

    async def acknowledge(self) -> None:
        for future in self.waiting:
            future.set_result(None)
        self.waiting.clear()
        await settled()


@pytest.fixture
async def slow() -> AsyncIterator[tuple[SlowLink, Outbox]]:
    link = SlowLink()
    made = Outbox(link, Sealer(sender="coordinator", epoch=3, key=KEY))
    made.start()
    yield link, made
    await made.stop()


async def test_words_overtake_a_model_which_is_read_as_it_goes(slow: tuple[SlowLink, Outbox]) -> None:
    link, outbox = slow
    blob = Lazy(40 * CHUNK_BYTES)
    for chunk in chunks(blob):
        outbox.put(chunk)
    await settled()
    assert [topic for topic, _, _ in link.handed] == ["m/0", "m/1"]  # as many as the window's bytes allow
    assert blob.reads == 2
    for number in range(5):
        outbox.put(notice(number))
    await settled()
    assert len(link.handed) == 2 + 5, "a word waits for no acknowledgement of a chunk"
    assert sum(len(payload) for _, payload, _ in link.handed) < 262_144, (
        "so it waits not in the connection's window"
    )
    while outbox.queued:
        await link.acknowledge()
    await link.acknowledge()
    await outbox.flush(60.0)
    model = [(topic, payload) for topic, payload, _ in link.handed if topic.startswith("m/")]
    assert [topic for topic, _ in model] == [f"m/{index}" for index in range(40)]
    bodies = [open_envelope(topic, payload).verified(KEY.public_key).body for topic, payload in model]
    assert [(body.index, len(body.data)) for body in bodies if isinstance(body, ModelChunk)] == [
        (index, CHUNK_BYTES) for index in range(40)
    ]


class OutOfReach(MemoryBlob):
    """In a database that is away for who cannot wait."""

    def read(self, start: int, length: int) -> bytes:
        if threading.current_thread() is threading.main_thread():
            raise AwayError("the journal is out of reach")
        return super().read(start, length)


async def test_chunks_wait_for_a_database_that_is_away(link: Link, outbox: Outbox) -> None:
    link.open.set()
    for chunk in chunks(OutOfReach(bytes(range(200)) * 1_000)):
        outbox.put(chunk)
    await outbox.flush(60.0)
    bodies = [
        open_envelope(topic, payload).verified(KEY.public_key).body for topic, payload, _ in link.handed
    ]
    assert b"".join(body.data for body in bodies if isinstance(body, ModelChunk)) == bytes(range(200)) * 1_000


async def test_small_chunks_stay_below_what_a_broker_has_under_way(slow: tuple[SlowLink, Outbox]) -> None:
    link, outbox = slow
    for chunk in chunks(Lazy(64_000), chunk_bytes=1_024):
        outbox.put(chunk)
    await settled()
    assert len(link.handed) == 16  # of twenty


async def test_what_a_device_asks_for_goes_first_and_once(slow: tuple[SlowLink, Outbox]) -> None:
    link, outbox = slow
    blob = Lazy(10 * CHUNK_BYTES)
    for chunk in chunks(blob):
        outbox.put(chunk)
    await settled()
    for device in ("a", "b", "a"):
        outbox.put(chunks(blob, to=f"dev/{device}")[7])  # is still to be retained
        outbox.put(chunks(blob, to=f"dev/{device}")[0])  # was retained already
    while outbox.queued:
        await link.acknowledge()
    topics = [topic for topic, _, _ in link.handed]
    assert topics[:6] == ["m/0", "m/1", "m/7", "dev/a", "dev/b", "m/2"]
    assert topics[6:] == [f"m/{index}" for index in (3, 4, 5, 6, 8, 9)]


async def test_a_first_version_is_announced_behind_its_chunks_and_only_as_it_is_then(
    slow: tuple[SlowLink, Outbox],
) -> None:
    link, outbox = slow
    for chunk in chunks(Lazy(3 * CHUNK_BYTES)):
        outbox.put(chunk)
    outbox.put(Send("run", Notice(code="n", detail="version 0"), retain=True, patient=True))
    outbox.put(Send("run", Notice(code="n", detail="round 1"), retain=True))
    outbox.put(notice(0))
    await settled()
    while outbox.queued:
        await link.acknowledge()
    assert [topic for topic, _, _ in link.handed] == ["t/0", "m/0", "m/1", "m/2", "run"]
    last = open_envelope("run", link.handed[-1][1]).verified(KEY.public_key).body
    assert last == Notice(code="n", detail="round 1")
    outbox.put(Send("run", Notice(code="n", detail="round 2"), retain=True))
    await settled()
    assert link.handed[-1][0] == "run"


async def test_a_chunk_whose_bytes_are_damaged_holds_up_nothing(
    slow: tuple[SlowLink, Outbox], caplog: pytest.LogCaptureFixture
) -> None:
    class Damaged(Lazy):
        def read(self, start: int, length: int) -> bytes:
            if start == 0:
                raise StoreError("journal.sqlite is damaged")
            return super().read(start, length)

    link, outbox = slow
    for chunk in chunks(Damaged(2 * CHUNK_BYTES)):
        outbox.put(chunk)
    await settled()
    assert [topic for topic, _, _ in link.handed] == ["m/1"]
    assert "not sent on m/0: journal.sqlite is damaged" in caplog.text


async def test_flush_gives_up_and_says_how_many(
    link: Link, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    outbox.put(notice(0))
    await outbox.flush(0.01)
    assert "1 messages were not acknowledged by the broker" in caplog.text
