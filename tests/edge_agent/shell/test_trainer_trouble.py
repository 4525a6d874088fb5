"""A trainer that crashes, hangs, or eats the board's memory: a real child with PyTorch, under a real agent.

The agent lives on, keeps what it has, says what happened, waits longer each time, and heals when the cause goes.
"""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.core.supervision import LOOP_FAILURES
from fedmq_edge_agent.shell.settings import TrainerSettings
from fedmq_edge_agent.shell.status import find
from fedmq_protocol.messages import Presence, Report
from tests.broker_fixtures import Connect
from tests.edge_agent.scripted import EVERYBODY
from tests.edge_agent.shell.on_air import LEASE_S, OnAir
from tests.edge_agent.shell.real_agent import AgentProcess, Launch, on_air_with
from tests.edge_agent.trainer.asking import task_text

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(900)]

LIMIT = 600_000_000

OBEDIENT = """
import os, signal, time
from pathlib import Path

def train(model, data, settings, context):
    orders = Path(__file__).with_name("orders")
    match orders.read_text() if orders.exists() else "":
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            while True:
                time.sleep(0.1)
        case "eat":
            eaten = []
            while len(eaten) < 170:  # 680 MB, and so it stays
                eaten.append(torch.zeros(1_000_000) + len(eaten))
                time.sleep(0.01)
            time.sleep(3_600)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01
    return {}
"""


class Scene:
    """An agent with an obedient task, and a coordinator on the air."""

    def __init__(self, on_air: OnAir, agent: AgentProcess, settings: AgentSettings, folder: Path) -> None:
        self.on_air, self.agent, self.settings = on_air, agent, settings
        self.orders = folder / "orders"
        self.lease = 0

    async def announce(self, *, lease_s: float = LEASE_S) -> None:
        self.lease += 1
        first = self.lease == 1
        await self.on_air.announce(
            chunks=first, inline=False, lease=self.lease, lease_s=lease_s, cohort=EVERYBODY
        )


async def begin(
    settings: AgentSettings, connect: Connect, launch: Launch, folder: Path, *, train_s: float
) -> Scene:
    task = folder / "obedient.py"
    task.write_text(task_text(extra=OBEDIENT, train="train"), encoding="utf-8")
    on_air, _ = await on_air_with(await connect(settings.broker.url, "coordinator"), task)
    trainer = TrainerSettings(memory_limit=LIMIT, first_train_timeout_s=train_s, threads=1, nice=0)
    given = {"task": str(task), "data": {"partition_id": 0}, "trainer": trainer}
    settings = settings.model_copy(update=given)
    return Scene(on_air, launch(settings), settings, folder)


async def test_killed_for_memory_again_and_again_it_is_said_everywhere_and_heals(
    settings: AgentSettings, connect: Connect, launch: Launch, tmp_path: Path
) -> None:
    scene = await begin(settings, connect, launch, tmp_path, train_s=600.0)
    await scene.announce()
    kept = await scene.on_air.receive("dev-1")  # it gets no receipt yet
    scene.orders.write_text("eat")
    for _ in range(LOOP_FAILURES):
        await scene.announce()
        report = await scene.on_air.wait_for(Report, timeout_s=120)
        assert (report.code, report.lease) == ("train-failed", scene.lease)
        assert re.search(r"trainer killed during train: took [6-9]\d\d MB", report.detail), report.detail
        assert "600 MB are allowed" in report.detail
    born = await scene.on_air.wait_for(Presence, lambda presence: bool(presence.problem))
    assert born.problem.startswith(f"the trainer failed {LOOP_FAILURES} times in a row, last: trainer killed")
    found = find(scene.settings.state_dir)
    assert found.running
    process = psutil.Process(scene.agent.process.pid)
    assert process.memory_info().rss < 60_000_000
    scene.orders.unlink()
    await scene.on_air.wait_for(Presence, lambda presence: not presence.problem, timeout_s=120)
    await scene.on_air.accept("dev-1", kept)
    await scene.announce()
    while (healed := await scene.on_air.receive("dev-1")).header.counter == kept.header.counter:
        pass  # sent again, until its receipt had come
    assert healed.header.lease == scene.lease
    assert process.is_running()
    await scene.on_air.close()


@pytest.mark.parametrize(
    ("order", "says"), [("crash", "SIGSEGV"), ("hang", r"it hung, and was ended after [3-9]\d s")]
)
async def test_a_crash_or_a_hang_is_reported_with_its_lease_and_the_next_training_goes_well(
    settings: AgentSettings, connect: Connect, launch: Launch, tmp_path: Path, order: str, says: str
) -> None:
    scene = await begin(settings, connect, launch, tmp_path, train_s=30.0)
    scene.orders.write_text(order)
    await scene.on_air.device_up()
    await scene.announce(lease_s=20.0)  # and a training is never given less than 30 s
    report = await scene.on_air.wait_for(Report, timeout_s=120)
    assert (report.code, report.lease) == ("train-failed", 1)
    assert re.search(says, report.detail), report.detail
    scene.orders.unlink()
    await scene.announce()
    update = await scene.on_air.receive("dev-1")
    assert update.header.lease == 2
    assert await scene.on_air.accept("dev-1", update)
    assert scene.agent.process.poll() is None
    await scene.on_air.close()
