"""Devices that were away, on real processes: a coordinator that goes on without them, and is killed meanwhile.

A «day» lasts as many versions as the run gives an update to arrive; with short trainings that is a matter of seconds.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedmq_coordinator.core.facts import Fact, UpdateAccepted, UpdateRejected
from fedmq_coordinator.shell.client import Client
from fedmq_coordinator.shell.store import Journal
from fedmq_edge_agent.core.state import PendingUpdate, load_state
from tests.broker_fixtures import require_mosquitto
from tests.chaos.stage import FEDERATION, RUN, Stage
from tests.chaos.witness import COORDINATOR

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(900)]

AWAY = "dev-1"
MAX_STALENESS = 30  # of the stage's runs
WITHIN_S = 150.0


def outbox(stage: Stage) -> list[PendingUpdate]:
    """What is in it on disk."""
    path = stage.device_dir(AWAY) / "state"
    run = load_state(path.read_bytes()).runs.get(RUN) if path.exists() else None
    return [] if run is None else list(run.pending)


def heard(stage: Stage) -> int:
    """How many of its updates were accepted."""
    return sum(name[0] == AWAY for name in stage.witness.accepted_at)


def unheard(stage: Stage) -> list[PendingUpdate]:
    """Those of which no byte has passed its door."""
    return [one for one in outbox(stage) if (AWAY, RUN, one.header.counter) not in stage.witness.sent]


async def leave(stage: Stage) -> PendingUpdate:
    """Cut the device off, let it commit what it trains meanwhile, and switch it off."""
    while True:
        stage.doors[AWAY].shut()
        try:
            await stage.until(lambda: bool(unheard(stage)), 4.0)
            break
        except TimeoutError:  # it had nothing to train for just then
            before = heard(stage)
            stage.doors[AWAY].mend()
            await stage.until(lambda before=before: heard(stage) > before, WITHIN_S)  # type: ignore[misc]
    stage.actors[AWAY].kill()
    return unheard(stage)[-1]


async def stay_away(stage: Stage, versions: int) -> None:
    """So many versions long, in the middle of which the coordinator is killed."""
    for _ in range(2):
        then = max(stage.witness.versions) + versions // 2
        await stage.until(lambda then=then: max(stage.witness.versions) >= then, WITHIN_S)  # type: ignore[misc]
        if stage.actors[COORDINATOR].state == "up" and stage.actors[COORDINATOR].kills == 0:
            stage.actors[COORDINATOR].kill()
            stage.actors[COORDINATOR].start()


async def come_back(stage: Stage, had: PendingUpdate) -> None:
    """The others rest meanwhile: however long its start takes, no version is published."""
    others = [stage.actors[name] for name in stage.device_names if name != AWAY]
    for other in others:
        other.pause()
    stage.doors[AWAY].mend()
    stage.actors[AWAY].start()
    counter = had.header.counter
    await stage.until(lambda: counter not in [one.header.counter for one in outbox(stage)], WITHIN_S)
    for other in others:
        other.go_on()


def is_told(words: str) -> bool:
    """Whether the device says that there is no such run any more."""
    return "run is over" in words or "the run is" in words


async def history(folder: Path) -> tuple[list[PendingUpdate], list[Fact]]:
    """Away for a short while, for too long, and until the run is over: what was in the outbox each time."""
    stage, had = Stage(folder, devices=3, train_s=0.2), list[PendingUpdate]()
    try:
        await stage.open()
        await stage.until(lambda: stage.num_accepted >= 6, WITHIN_S)
        for versions in (10, MAX_STALENESS + 10):
            had.append(await leave(stage))
            await stay_away(stage, versions)
            await come_back(stage, had[-1])
        await asyncio.sleep(1.0)
        had.append(await leave(stage))
        with Client(stage.state_dir) as client:
            await asyncio.to_thread(client.stop_run, RUN)
        await come_back(stage, had[-1])
        await stage.until(lambda: is_told(stage.actors[AWAY].words()), WITHIN_S)
        await stage.end()
    finally:
        await stage.close()
    journal = Journal.open(stage.state_dir, federation=FEDERATION)
    try:
        return had, list(journal.read())
    finally:
        journal.close()


def test_what_a_device_had_when_it_left_counts_by_its_age_or_is_refused_with_a_reason(
    tmp_path: Path,
) -> None:
    require_mosquitto()
    had, facts = asyncio.run(history(tmp_path / "away"))
    verdicts = {
        fact.counter: fact
        for fact in facts
        if isinstance(fact, UpdateAccepted | UpdateRejected) and fact.device == AWAY
    }
    within, beyond, over = (verdicts.get(one.header.counter) for one in had)
    assert isinstance(within, UpdateAccepted)
    assert 8 <= within.staleness <= MAX_STALENESS
    assert isinstance(beyond, UpdateRejected)
    assert (beyond.reason, beyond.residual) == ("too-old", "discard")
    assert over is None or isinstance(over, UpdateRejected)
    later = [fact for fact in verdicts.values() if isinstance(fact, UpdateAccepted)]
    assert any(fact.counter > beyond.counter for fact in later) or had[2].header.counter > beyond.counter
