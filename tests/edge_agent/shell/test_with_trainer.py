"""The agent as it runs on a device: its own process, a real trainer child, a real broker, true model bytes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_protocol.aio import Connection
from fedmq_protocol.chunks import NO_HASH, blob_ref, chain_hash
from fedmq_protocol.codecs import (
    CodecSpec,
    apply_delta,
    decode_update,
    encode_delta,
    encode_snapshot,
    replica_sha256,
    requantise,
)
from fedmq_protocol.messages import Presence, TaskRef
from fedmq_protocol.schema import TensorSchema
from tests.broker_fixtures import Connect
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator, Version
from tests.edge_agent.shell.on_air import OnAir
from tests.edge_agent.trainer.asking import PLAIN, Ask, task_text

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
MAX_RSS_BYTES = 50_000_000
AGENT = """
import sys, pathlib
from fedmq_edge_agent import AgentSettings, run_agent_forever
run_agent_forever(AgentSettings.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))
"""


class ModelCoordinator(ScriptedCoordinator):
    """Publishes a real model, whose replica it follows by the protocol's own arithmetic."""

    def load(self, opened: dict[str, Any]) -> None:
        """Begin with a model of this schema."""
        self.schema = TensorSchema.model_validate(opened["schema"])
        self.task = TaskRef(name=opened["name"], version=opened["version"], schema_hash=self.schema.hash)
        self._model_rng = np.random.default_rng(3)
        vector = self._model_rng.normal(size=self.schema.size).astype(np.float32)
        snapshot, replica = encode_snapshot(vector, self.schema)
        self.replicas = [replica]
        self.versions = [Version(0, chain_hash(NO_HASH, blob_ref(snapshot).sha256), snapshot=snapshot)]

    def advance(self, *, rebase: bool = False) -> None:
        """Publish a version a little further on."""
        before, replica = self.versions[-1], self.replicas[-1].copy()
        target = replica + self._model_rng.normal(scale=0.1, size=replica.size).astype(np.float32)
        delta = encode_delta(target, replica, self.schema, CodecSpec("topk-log4", 0.1))
        apply_delta(replica, delta, self.schema)
        snapshot = encode_snapshot(replica, self.schema)[0] if rebase else None
        self.replicas.append(requantise(replica, self.schema) if rebase else replica)
        chained = chain_hash(before.chain_hash, blob_ref(delta).sha256)
        self.versions.append(Version(before.number + 1, chained, snapshot, delta, rebase))

    def replica_hash(self, version: int) -> bytes:
        return replica_sha256(self.replicas[version])


class AgentProcess:
    """An agent as production starts it."""

    def __init__(self, settings: AgentSettings, folder: Path) -> None:
        file = folder / "settings.json"
        file.write_text(settings.model_dump_json(exclude_none=True), encoding="utf-8")
        self.log = folder / "agent.log"
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", AGENT, str(file)]
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log)

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def kill(self) -> None:
        """As a power cut would: the children too."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.wait()


Launch = Callable[[AgentSettings], AgentProcess]


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


async def on_air_with(connection: Connection, task: Path) -> tuple[OnAir, ModelCoordinator]:
    coordinator = ModelCoordinator()
    coordinator.load(Ask()("open", task=str(task), settings={"partition_id": 0}, role="device"))
    return OnAir(connection, coordinator), coordinator


def mass(coordinator: ModelCoordinator, payload: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return decode_update(payload, coordinator.schema).parameters.to_dense()


async def test_rounds_rebases_kills_and_restores_with_a_real_model(
    settings: AgentSettings, connect: Connect, launch: Launch, task: Path
) -> None:
    on_air, coordinator = await on_air_with(await connect(settings.broker.url, "coordinator"), task)
    settings = settings.model_copy(update={"task": str(task), "data": {"partition_id": 0}})
    coordinator.advance()
    await on_air.announce(inline=False, lease=1, cohort=EVERYBODY)
    agent = launch(settings)
    for lease in range(1, 6):
        update = await on_air.receive("dev-1")
        assert (update.header.lease, update.header.base_version) == (lease, lease)
        assert np.isfinite(mass(coordinator, update.data)).all()
        assert np.abs(mass(coordinator, update.data)).max() > 0
        assert await on_air.accept("dev-1", update)
        coordinator.advance(
            rebase=lease == 3
        )  # version 4 comes with the replica's hash: a wrong bit would show
        await on_air.announce(lease=lease + 1, cohort=EVERYBODY)
    assert agent.rss_bytes < MAX_RSS_BYTES, f"{agent.rss_bytes / 1e6:.1f} MB"
    pending = await on_air.receive("dev-1")
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
    again = await on_air.receive("dev-1")
    assert (again.header.counter, again.data) == (pending.header.counter, pending.data)
    await on_air.say(coordinator.receipt("dev-1", again.header.counter, residual="restore"))
    coordinator.advance()
    await on_air.announce(lease=7, cohort=EVERYBODY)
    restored = await on_air.receive("dev-1")
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
