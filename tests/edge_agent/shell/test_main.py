"""The agent's log: a line a record, with the device, run and lease that it is about."""

from __future__ import annotations

import logging

import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.shell import service
from fedmq_edge_agent.shell.main import LineFormatter
from tests.edge_agent.shell.conftest import StartAgent
from tests.edge_agent.shell.on_air import OnAir
from tests.edge_agent.shell.test_service import until


def test_a_record_is_a_line_that_says_where() -> None:
    record = logging.makeLogRecord(
        {"msg": "trained", "levelname": "INFO", "device": "dev-1", "run": "r1", "round": 7, "created": 0.0}
    )
    assert LineFormatter().format(record).endswith("info    device=dev-1 run=r1 round=7 trained")
    plain = logging.makeLogRecord({"msg": "started", "levelname": "INFO", "device": "dev-1", "run": ""})
    assert LineFormatter().format(plain).endswith("info    device=dev-1 started")


@pytest.mark.mosquitto
async def test_a_silent_agent_says_now_and_then_what_it_waits_for(
    on_air: OnAir,
    settings: AgentSettings,
    start_agent: StartAgent,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "MURMUR_S", 0.2)
    await on_air.announce()
    with caplog.at_level(logging.INFO, logger="fedmq_edge_agent"):
        await start_agent(settings)
        await until(lambda: "holds version 0 of r1; waiting for a lease" in caplog.messages)
