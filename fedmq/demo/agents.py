"""The devices of a demo: each an agent's supervisor as it runs on a board, in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fedmq.logs import begin_logging
from fedmq_edge_agent.shell.main import run_agent_forever
from fedmq_edge_agent.shell.settings import AgentSettings, TrainerSettings
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import FedmqError


def read_spec(path: Path) -> list[AgentSettings]:
    """The settings of each device, from a JSON list."""
    return [_settings(device) for device in json.loads(path.read_text(encoding="utf-8"))]


def serve(settings: AgentSettings) -> int:
    """Be one device until SIGTERM; returns the exit code."""
    begin_logging(always={"device": settings.id})
    try:
        run_agent_forever(settings)
    except FedmqError as error:
        sys.stderr.write(f"fedmq: {error}\n")
        return 1
    return 0


def _settings(device: dict[str, Any]) -> AgentSettings:
    return AgentSettings(
        federation=device["federation"],
        id=device["id"],
        state_dir=Path(device["state_dir"]),
        task=device["task"],
        data=device["data"],
        broker=BrokerSettings(url=device["broker"]),
        trainer=TrainerSettings(nursery=Path(device["nursery"])),
        slow_s=device["slow_s"],
    )
