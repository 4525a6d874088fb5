"""What the broker retained is gone: since it saved nothing, or since somebody cleared it while all looked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.broker_fixtures import require_mosquitto
from tests.chaos.director import clear_retained
from tests.chaos.stage import Stage

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_S = 150.0


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A federation of one device at work; its broker saves nothing."""
    require_mosquitto()
    stage = Stage(tmp_path / "run", devices=1, train_s=0.1, keepalive_s=60)  # no connection ends by a stall
    try:
        await stage.open()
        await stage.until(lambda: stage.num_accepted >= 2, PATIENCE_S)
        yield stage
    finally:
        await stage.close()


async def all_deliver(stage: Stage) -> None:
    before = len(stage.witness.accepted_at)

    def who() -> set[str]:
        return {name[0] for name in list(stage.witness.accepted_at)[before:]}

    await stage.until(lambda: who() >= set(stage.device_names), PATIENCE_S)


async def test_a_late_joiner_finds_its_way_after_somebody_has_cleared_everything(stage: Stage) -> None:
    """The coordinator's connection stands, so nobody tells it: the newcomer's hello and questions must be enough."""
    await clear_retained(stage)
    (await stage.add_device(2)).start()
    await all_deliver(stage)
    assert stage.actors["coordinator"].words().count("connected to the broker") == 1


async def test_a_late_joiner_finds_its_way_after_the_broker_has_begun_anew(stage: Stage) -> None:
    broker = stage.actors["broker"]
    broker.kill()
    newcomer = await stage.add_device(2)
    broker.start()
    await asyncio.to_thread(newcomer.start)
    await all_deliver(stage)
    assert stage.witness.complaints == []
