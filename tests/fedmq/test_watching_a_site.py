"""The federation's own Mosquitto, watched as @monitor over TLS: what it bears, whom it throws out, who looks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fedmq.looking import pictures
from fedmq.watching import Watched, Watching, exporter_file
from fedmq_broker import membership
from fedmq_broker.watching.http import Pages
from fedmq_broker.watching.picture import Picture
from fedmq_protocol.access import MONITOR, OPERATOR, ROLES
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.messages import Presence
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.broker_fixtures import Connect, MakeSite, SiteBroker

pytestmark = pytest.mark.mosquitto
TOPICS = Topics("home")


def watched_on(broker: SiteBroker, state_dir: Path) -> Watched:
    return Watched("home", broker.settings(MONITOR), state_dir, broker.site, planned_bytes=100_000_000)


@contextlib.asynccontextmanager
async def watching(watched: Watched) -> AsyncIterator[Watching]:
    watching = Watching(watched, ask_every_s=0.1, probe_every_s=0.2)
    task = asyncio.create_task(watching.run())
    try:
        await watching.settled(60)
        yield watching
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(look: Callable[[], Picture], fits: Callable[[Picture], object]) -> Picture:
    async with asyncio.timeout(60):
        while not fits(picture := look()):  # noqa: ASYNC110 - looked at, as a monitor does
            await asyncio.sleep(0.02)
    return picture


async def announce(connect: Connect, broker: SiteBroker, device: str) -> None:
    """The device is there."""
    connection = await connect(client_id="any", **dict(broker.settings(device)))
    key = SigningKey(device.encode().ljust(32))
    body = Presence(online=True, session=1, public_key=key.public_key)
    packet = Sealer(sender=device, epoch=1, key=key).seal(TOPICS.presence(device), body)
    await connection.publish(TOPICS.presence(device), packet, retain=True)


async def test_what_it_bears_and_whom_it_throws_out(
    site_broker: MakeSite, connect: Connect, tmp_path: Path
) -> None:
    broker = site_broker("dev-1", "dev-2", devices=50)
    for device in ("dev-1", "dev-2"):
        await announce(connect, broker, device)
    async with watching(watched_on(broker, tmp_path)) as seeing:
        seen = await until(
            seeing.picture, lambda seen: seen.certificates and seen.broker.probes and len(seen.devices) == 2
        )
        assert seen.broker.figures["broker_uptime"] >= 0
        assert seen.broker.limits["max_queued_messages"] == broker.plan.limits.max_queued_messages
        assert seen.broker.limits["max_connections"] == broker.plan.limits.max_connections
        assert seen.broker.resident_bytes is not None
        assert 1_000_000 < seen.broker.resident_bytes < 100_000_000
        assert seen.certificates.keys() == {"authority", "server", "crl", "devices", *ROLES}
        assert all(end > time.time() + 20 * 86_400 for end in seen.certificates.values())
        assert [(each.device, each.state) for each in seen.devices] == [("dev-1", "idle"), ("dev-2", "idle")]

        await membership.revoke(broker.site, ["dev-1"], live=broker.settings(OPERATOR))
        seen = await until(seeing.picture, lambda seen: seen.clients and len(seen.devices) == 1)
        assert [each.device for each in seen.devices] == ["dev-2"]
        [cut_off] = (
            seen.clients
        )  # by the plugin, or by a session that took its place so that its last will was heard
        assert cut_off.client == "dev-1"
        assert cut_off.troubles.keys() <= {"thrown-out", "taken-over"}


async def test_beside_an_exporter_the_view_asks_that_one(site_broker: MakeSite, tmp_path: Path) -> None:
    """The monitor is one member with one session: a second connection would push the exporter out."""
    broker = site_broker()
    watched = watched_on(broker, tmp_path)
    place = exporter_file(watched)
    assert place is not None
    async with contextlib.aclosing(pictures(watched, every_s=0.05, settle_s=60)) as looks:
        async with watching(watched) as exporting:
            pages = Pages(exporting.picture)
            url = await pages.start("127.0.0.1", 0)
            place.write_text(json.dumps({"url": url, "pid": os.getpid()}))
            for _ in range(3):
                picture, note = await anext(looks)
                assert picture.broker.up
                assert url in note
            assert "taken-over" not in exporting.picture().broker.events
        # From here on there is one session again: two would push each other out.
        place.unlink()
        await pages.stop()
        async with asyncio.timeout(60):
            while note:
                picture, note = await anext(looks)
        assert picture.broker.up  # it went on by itself
