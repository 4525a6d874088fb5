"""Two coordinators of one federation, as processes: one goes on, the other ends and says why, and the run goes on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.broker_fixtures import require_mosquitto
from tests.chaos.actors import Actor
from tests.chaos.stage import Stage

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_S = 150.0


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A federation of two devices at work."""
    require_mosquitto()
    stage = Stage(tmp_path / "run", devices=2, train_s=0.1)
    try:
        await stage.open()
        await stage.until(lambda: stage.num_accepted >= 4, PATIENCE_S)
        yield stage
    finally:
        await stage.close()


async def copied(stage: Stage) -> Actor:
    """A second coordinator, on a copy of the first one's folder, which has been killed."""
    stage.actors["coordinator"].kill()
    folder = stage.folder / "second"
    shutil.copytree(stage.state_dir, folder)
    stage.witness.on_accepted = lambda _: None  # there are two journals now
    return await stage.add_coordinator("coordinator-2", folder)


async def goes_on(stage: Stage) -> None:
    """Every device delivers two more updates."""
    before = len(stage.witness.accepted_at)

    def new(device: str) -> int:
        return sum(name[0] == device for name in list(stage.witness.accepted_at)[before:])

    await stage.until(lambda: all(new(device) >= 2 for device in stage.device_names), PATIENCE_S)


async def test_a_second_one_on_the_same_folder_is_refused_and_told_of_the_first(stage: Stage) -> None:
    first = stage.actors["coordinator"]
    second = await stage.add_coordinator("coordinator-2", stage.state_dir)
    second.start()
    await stage.until(lambda: second.state == "down", PATIENCE_S)
    ((code, words),) = second.ends
    assert code == 1
    assert f"pid {first.pid}" in words
    await goes_on(stage)


async def test_of_two_that_were_started_once_each_since_the_copy_one_goes_on(stage: Stage) -> None:
    second = await copied(stage)
    first = stage.actors["coordinator"]
    first.start()
    await goes_on(stage)
    second.start()
    await stage.until(lambda: "down" in {first.state, second.state}, PATIENCE_S)
    (gone,) = [each for each in (first, second) if each.state == "down"]
    ((code, words),) = gone.ends
    assert code == 1
    assert "has taken over" in words.splitlines()[-1]
    await goes_on(stage)


async def test_one_that_was_stopped_in_its_tracks_ends_when_a_newer_one_has_come(stage: Stage) -> None:
    second = await copied(stage)
    first = stage.actors["coordinator"]
    first.start()
    await goes_on(stage)
    first.pause()
    second.start()
    await goes_on(stage)
    first.go_on()
    await stage.until(lambda: "down" in {first.state, second.state}, PATIENCE_S)
    await goes_on(stage)
    assert {first.state, second.state} == {"up", "down"}


async def test_an_older_copy_takes_up_a_federation_that_has_moved_on(stage: Stage) -> None:
    second = await copied(stage)
    first = stage.actors["coordinator"]
    for _ in range(2):
        first.start()
        await goes_on(stage)
        await asyncio.to_thread(first.end)
    second.start()
    await goes_on(stage)
    assert "is an older copy" in second.words()
