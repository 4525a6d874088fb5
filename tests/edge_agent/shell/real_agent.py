"""An agent as production starts it, with a real trainer child; and a coordinator that publishes a real model."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

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
from fedmq_protocol.messages import TaskRef
from fedmq_protocol.schema import TensorSchema
from tests.edge_agent.scripted import ScriptedCoordinator, Version
from tests.edge_agent.shell.on_air import OnAir
from tests.edge_agent.trainer.asking import Ask

ROOT = Path(__file__).parents[3]
AGENT = """
import sys, pathlib
from fedmq.logs import begin_logging
from fedmq_edge_agent import AgentSettings, run_agent_forever
begin_logging()
run_agent_forever(AgentSettings.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))
"""


class ModelCoordinator(ScriptedCoordinator):
    """Publishes a real model, whose replica it follows by the protocol's own arithmetic."""

    def load(self, opened: dict[str, Any]) -> None:
        """Begin with a model of this schema."""
        self.schema = TensorSchema.model_validate(opened["schema"])
        self.task = TaskRef(name=opened["name"], version=opened["version"], schema_hash=self.schema.hash)
        self._model_rng = np.random.default_rng(3)
        self.published: dict[bytes, bytes] = {}
        self.begin_model()

    def begin_model(self) -> None:
        """A first version, as at the beginning of a run."""
        vector = self._model_rng.normal(size=self.schema.size).astype(np.float32)
        snapshot, replica = encode_snapshot(vector, self.schema)
        self.replicas = [replica]
        self.published[blob_ref(snapshot).sha256] = snapshot
        self.versions = [Version(0, chain_hash(NO_HASH, blob_ref(snapshot).sha256), snapshot=snapshot)]

    def advance(self, *, rebase: bool = False) -> None:
        """Publish a version a little further on."""
        before, replica = self.versions[-1], self.replicas[-1].copy()
        target = replica + self._model_rng.normal(scale=0.1, size=replica.size).astype(np.float32)
        delta = encode_delta(target, replica, self.schema, CodecSpec("topk-log4", 0.1))
        apply_delta(replica, delta, self.schema)
        snapshot = encode_snapshot(replica, self.schema)[0] if rebase else None
        self.published[blob_ref(delta).sha256] = delta
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


async def on_air_with(connection: Connection, task: Path) -> tuple[OnAir, ModelCoordinator]:
    coordinator = ModelCoordinator()
    coordinator.load(Ask()("open", task=str(task), settings={"partition_id": 0}, role="device"))
    return OnAir(connection, coordinator), coordinator


def mass(coordinator: ModelCoordinator, payload: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return decode_update(payload, coordinator.schema).parameters.to_dense()
