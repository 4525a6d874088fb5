"""An agent against a real Mosquitto, with the coordinator's part read from a script."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fedmq_broker.runner import RunningBroker
from fedmq_edge_agent import AgentSettings, run_agent
from fedmq_edge_agent.core import outbox
from fedmq_edge_agent.shell.settings import TrainerSettings
from fedmq_protocol.aio import BrokerSettings
from tests.broker_fixtures import Connect
from tests.edge_agent.scripted import ScriptedCoordinator
from tests.edge_agent.shell.fake_child import UNHURRIED, FakeChild
from tests.edge_agent.shell.on_air import OnAir
from tests.edge_agent.shell.real_agent import AgentProcess, Launch
from tests.edge_agent.trainer.asking import PLAIN

ROOT = Path(__file__).parents[3]


@pytest.fixture
def settings(mosquitto: RunningBroker, tmp_path: Path) -> AgentSettings:
    broker = BrokerSettings(
        url=mosquitto.url, reconnect_min_s=0.05, reconnect_max_s=0.5, connect_timeout_s=30.0
    )
    trainer = TrainerSettings(nice=0)  # a niceness makes it wait for whatever else this machine does
    return AgentSettings(
        id="dev-1", state_dir=tmp_path / "dev-1", task="unused.py", broker=broker, trainer=trainer
    )


@pytest.fixture
async def on_air(mosquitto: RunningBroker, connect: Connect) -> AsyncIterator[OnAir]:
    coordinator = OnAir(await connect(mosquitto.url, "coordinator"), ScriptedCoordinator())
    yield coordinator
    await coordinator.close()


class RunningAgent:
    """An agent in this process.

    Attributes:
        children: the trainers that it started, in order.
    """

    def __init__(self, settings: AgentSettings, make_child: Callable[[], FakeChild]) -> None:
        self.children: list[FakeChild] = []
        self._stop = asyncio.Event()

        async def start_child() -> FakeChild:
            self.children.append(make_child())
            return self.children[-1]

        self.task = asyncio.create_task(run_agent(settings, stop=self._stop, start_child=start_child))

    async def stop(self) -> None:
        self._stop.set()
        await self.task


StartAgent = Callable[..., Awaitable[RunningAgent]]


@pytest.fixture
async def start_agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StartAgent]:
    monkeypatch.setattr(outbox, "RESEND", UNHURRIED)
    running: list[RunningAgent] = []

    async def start(settings: AgentSettings, make_child: Callable[[], FakeChild] = FakeChild) -> RunningAgent:
        running.append(RunningAgent(settings, make_child))
        return running[-1]

    yield start
    for agent in running:
        with contextlib.suppress(Exception):
            await agent.stop()


StartProcess = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    running: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "agent.log").open("wb")

    def start(settings: AgentSettings, *arguments: str) -> subprocess.Popen[bytes]:
        file = tmp_path / "settings.json"
        file.write_text(settings.model_dump_json(exclude_none=True), encoding="utf-8")
        command = [sys.executable, "-m", "tests.edge_agent.shell.agent_process", str(file), *arguments]
        running.append(subprocess.Popen(command, cwd=ROOT, stderr=log))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
    log.close()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    running: list[AgentProcess] = []

    def start(settings: AgentSettings) -> AgentProcess:
        running.append(AgentProcess(settings, tmp_path))
        return running[-1]

    yield start
    for agent in running:
        agent.kill()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "mytask.py"
    path.write_text(PLAIN, encoding="utf-8")
    return path
