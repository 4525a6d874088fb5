"""The outbox against a broker link that answers when the test says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from fedmq_coordinator.core.effects import Clear, Send
from fedmq_coordinator.shell import outbox as outbox_module
from fedmq_coordinator.shell.outbox import Outbox
from fedmq_protocol.aio import RefusedError
from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import ConnectionFailedError
from fedmq_protocol.messages import Notice
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
    await outbox.flush(5.0)
    envelopes = [open_envelope(topic, payload).verified(KEY.public_key) for topic, payload, _ in link.handed]
    assert [envelope.sequence for envelope in envelopes] == list(range(1, 101))
    assert [envelope.body for envelope in envelopes] == [notice(number).body for number in range(100)]
    assert {envelope.epoch for envelope in envelopes} == {3}


async def test_clear_is_nothing_retained(link: Link, outbox: Outbox) -> None:
    link.open.set()
    outbox.put(Clear("t"))
    outbox.put(Send("t", Notice(code="n", detail=""), retain=True))
    await outbox.flush(5.0)
    assert link.handed[0] == ("t", b"", True)
    assert link.handed[1][2] is True


async def test_what_is_queued_when_the_connection_goes_is_dropped(link: Link, outbox: Outbox) -> None:
    link.fails = ConnectionFailedError("gone")
    for number in range(100):
        outbox.put(notice(number))
    await settled()
    outbox.drop_all()
    link.open.set()
    await outbox.flush(5.0)
    assert len(link.handed) == 32
    link.fails = None
    outbox.put(notice(7))
    await outbox.flush(5.0)
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
    await outbox.flush(5.0)
    assert (said in caplog.text) if said is not None else (caplog.text == "")
    link.fails = None
    outbox.put(notice(1))
    await outbox.flush(5.0)
    assert len(link.handed) == 2


async def test_a_full_queue_drops_and_says_so_once(
    link: Link, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_QUEUED", 10)
    for number in range(40):
        outbox.put(notice(number))
    link.open.set()
    await outbox.flush(5.0)
    assert len(link.handed) == 10
    assert caplog.text.count("messages wait for the broker") == 1


async def test_flush_gives_up_and_says_how_many(
    link: Link, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    outbox.put(notice(0))
    await outbox.flush(0.01)
    assert "1 messages were not acknowledged by the broker" in caplog.text
