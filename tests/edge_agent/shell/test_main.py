"""The agent's log: what it says, and the device, run and round that it says it of."""

from __future__ import annotations

import logging

import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.shell import service
from tests.edge_agent.shell.conftest import StartAgent
from tests.edge_agent.shell.on_air import OnAir
from tests.edge_agent.shell.test_service import until


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
    fields = [(r.device, r.run, r.round) for r in caplog.records if "waiting for a lease" in r.message]  # type: ignore[attr-defined]
    assert set(fields) == {(settings.id, "r1", len(on_air.script.versions))}
