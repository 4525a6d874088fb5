"""The agent as it runs on a device: its own process, a real trainer child, a real broker, true model bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_protocol.messages import Presence
from tests.broker_fixtures import Connect
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator
from tests.edge_agent.shell.on_air import OnAir
from tests.edge_agent.shell.real_agent import Launch, mass, on_air_with
from tests.edge_agent.trainer.asking import PLAIN, task_text

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(900)]

MAX_RSS_BYTES = 50_000_000


async def test_rounds_rebases_kills_and_restores_with_a_real_model(
    settings: AgentSettings, connect: Connect, launch: Launch, task: Path
) -> None:
    on_air, coordinator = await on_air_with(await connect(settings.broker.url, "coordinator"), task)
    settings = settings.model_copy(update={"task": str(task), "data": {"partition_id": 0}})
    coordinator.advance()
    await on_air.announce(inline=False, lease=1, cohort=EVERYBODY)
    agent = launch(settings)
    counter = 0
    for lease in range(1, 6):
        update = await on_air.receive("dev-1", after=counter)
        counter = update.header.counter
        assert (update.header.lease, update.header.base_version) == (lease, lease)
        assert np.isfinite(mass(coordinator, update.data)).all()
        assert np.abs(mass(coordinator, update.data)).max() > 0
        assert await on_air.accept("dev-1", update)
        coordinator.advance(
            rebase=lease == 3
        )  # version 4 comes with the replica's hash: a wrong bit would show
        await on_air.announce(lease=lease + 1, cohort=EVERYBODY)
    assert agent.rss_bytes < MAX_RSS_BYTES, f"{agent.rss_bytes / 1e6:.1f} MB"
    pending = await on_air.receive("dev-1", after=counter)
    assert pending.header.base_version == 6
    run_dir = settings.state_dir / "runs" / "r1"
    assert {file.name for file in run_dir.glob("*-*.bin") if file.name[0] in "bd"} == {
        "base-4.bin",
        "delta-5.bin",
        "delta-6.bin",
    }
    assert (run_dir / "base-4.bin").read_bytes() == coordinator.versions[4].snapshot
    agent.kill()
    launch(settings)
    again = await on_air.receive("dev-1", after=counter)
    assert (again.header.counter, again.data) == (pending.header.counter, pending.data)
    await on_air.say(coordinator.receipt("dev-1", again.header.counter, residual="restore"))
    coordinator.advance()
    await on_air.announce(lease=7, cohort=EVERYBODY)
    restored = await on_air.receive("dev-1", after=again.header.counter)
    assert (restored.header.lease, restored.header.base_version) == (7, 7)
    assert await on_air.accept("dev-1", restored)
    await on_air.close()
    assert not any("bad-model" in report for report in agent.log.read_text().splitlines())


async def test_a_task_with_an_error_is_told_with_its_line(
    settings: AgentSettings, connect: Connect, launch: Launch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(task_text(extra="raise ValueError('no camera found')"), encoding="utf-8")
    on_air = OnAir(await connect(settings.broker.url, "coordinator"), ScriptedCoordinator())
    launch(settings.model_copy(update={"task": str(broken)}))
    presence = await on_air.wait_for(Presence, lambda presence: presence.problem.startswith("task-error"))
    assert presence.online
    assert "no camera found" in presence.problem
    assert "broken.py:" in presence.problem
    broken.write_text(PLAIN, encoding="utf-8")  # mended: it goes on by itself
    assert (await on_air.device_up()).num_examples
    await on_air.close()
