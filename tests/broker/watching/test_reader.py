"""The reader beside a real Mosquitto that is tight, stops, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from fedmq_broker.runner import RunningBroker
from fedmq_broker.watching.log_lines import LogEvent
from fedmq_broker.watching.picture import Picture
from fedmq_broker.watching.reader import Reader
from fedmq_broker.watching.watch import Watch
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.topics import Topics
from tests.broker.watching.stalled import stalled_subscriber
from tests.broker_fixtures import PATIENCE_S, Connect, CustomBroker

pytestmark = pytest.mark.mosquitto

TIGHT = """
listener {port} 127.0.0.1
allow_anonymous true
sys_interval 1
max_inflight_messages 5
max_queued_messages 40
log_dest topic
log_dest stderr
log_type notice
log_type error
connection_messages true
"""


@dataclass
class Watched:
    watch: Watch

    def picture(self) -> Picture:
        return self.watch.picture(now=time.monotonic(), wall=time.time())

    async def until(self, fits: Callable[[Picture], object], *, timeout_s: float = PATIENCE_S) -> Picture:
        async with asyncio.timeout(timeout_s):
            while not fits(picture := self.picture()):  # noqa: ASYNC110 - looked at, as a monitor does
                await asyncio.sleep(0.02)
        return picture


@contextlib.asynccontextmanager
async def watching(url: str) -> AsyncIterator[Watched]:
    watch = Watch(Topics("home"))
    reader = Reader(
        BrokerSettings(url=url, reconnect_max_s=0.3, connect_timeout_s=PATIENCE_S / 2),
        watch,
        clock=time.monotonic,
        probe_every_s=0.2,
    )
    task = asyncio.create_task(reader.run())
    try:
        await asyncio.wait_for(reader.settled.wait(), PATIENCE_S)
        yield Watched(watch)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_queue_is_seen_to_fill_before_it_drops_and_then_whose_it_is(
    custom_mosquitto: Callable[[str], CustomBroker], connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    broker = custom_mosquitto(TIGHT)
    url = f"mqtt://127.0.0.1:{broker.port}"
    async with watching(url) as watched:
        await watched.until(lambda seen: seen.broker.queued_messages == 0)
        publisher = await connect(url, "publisher")
        with stalled_subscriber(broker.port, "dev-7", "work"):
            for _ in range(30):
                await publisher.publish("work", b"x" * 1_000)
            filling = await watched.until(
                lambda seen: (
                    (seen.broker.queued_messages or 0) >= 30
                    # Figures of one interval come one after the other: between two of them they do not fit together.
                    and seen.broker.queued_bytes == pytest.approx(30_000, rel=0.05)
                )
            )
            assert filling.broker.figures["broker_publish_messages_dropped"] == 0
            assert filling.clients == []
            for _ in range(30):
                await publisher.publish("work", b"x" * 1_000)
            full = await watched.until(
                lambda seen: seen.clients and seen.broker.figures["broker_publish_messages_dropped"] > 0
            )
        assert (
            full.broker.figures["broker_publish_messages_dropped"] <= 15
        )  # 60, of which at least 5 + 40 are borne
        assert [(each.client, each.troubles) for each in full.clients] == [("dev-7", {"dropped": 1})]
        assert full.happenings[0].text == "Outgoing messages are being dropped for client dev-7."
    [record] = [each for each in caplog.records if "dropped" in each.message]
    assert (record.device, record.fields) == ("dev-7", {"kind": "dropped"})  # type: ignore[attr-defined]


async def test_a_flood_of_trouble_is_told_in_a_sum(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(BrokerSettings(), Watch(Topics("home")), clock=time.monotonic)
    for number in range(100):
        reader._tell(LogEvent("refused", "", f"refused {number}"), now=10.0)
    assert len(caplog.records) == 30
    reader._tell(LogEvent("refused", "", "refused again"), now=80.0)
    assert caplog.messages[-2:] == ["the broker had 70 more like these", "the broker: refused again"]


async def test_a_probe_comes_back_and_a_broker_that_goes_is_missed(
    start: Callable[..., RunningBroker],
) -> None:
    broker = start("mosquitto")
    async with watching(broker.url) as watched:
        seen = await watched.until(lambda seen: seen.broker.probes >= 2 and seen.broker.version)
        assert seen.broker.version.startswith("mosquitto version ")
        assert "broker_clients_connected" in seen.broker.figures
        assert seen.broker.probe_s is not None
        assert 0 < seen.broker.probe_s < PATIENCE_S
        broker.stop()
        gone = await watched.until(lambda seen: not seen.broker.up)
        assert str(broker.port) in gone.broker.detail
        assert gone.broker.queued_messages is None
        start("mosquitto", port=broker.port)
        back = await watched.until(lambda seen: seen.broker.up)
        assert back.broker.detail == ""


async def test_the_embedded_broker_tells_no_figures_and_is_watched_all_the_same(
    start: Callable[..., RunningBroker],
) -> None:
    async with watching(start("embedded").url) as watched:
        seen = await watched.until(lambda seen: seen.broker.probes >= 1)
        assert (seen.broker.figures, seen.broker.figures_age_s, seen.broker.queued_messages) == (
            {},
            None,
            None,
        )
