"""A daily budget on a real socket: what a proxy counts stays below it, and the operator reads why."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from fedmq_broker.runner import RunningBroker
from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.shell import service
from fedmq_protocol.messages import Body, Presence, Update
from tests.broker_fixtures import Proxy
from tests.edge_agent.scripted import EVERYBODY
from tests.edge_agent.shell.conftest import StartAgent
from tests.edge_agent.shell.fake_child import FakeChild
from tests.edge_agent.shell.on_air import OnAir

pytestmark = pytest.mark.mosquitto

LIMIT = 60_000
PAYLOAD = 3_000
NOON_UTC = 1_795_435_200.0
"""2026-11-23, 12:00 UTC."""


async def test_what_crosses_the_socket_stays_within_the_budget(
    on_air: OnAir,
    mosquitto: RunningBroker,
    settings: AgentSettings,
    start_agent: StartAgent,
    proxy_to: Callable[[int], Awaitable[Proxy]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noon_s = NOON_UTC - time.monotonic()  # no midnight comes, and a new budget with it
    clocks = SimpleNamespace(time=lambda: noon_s + time.monotonic(), monotonic=time.monotonic)
    monkeypatch.setattr(service, "time", clocks)
    proxy = await proxy_to(mosquitto.port)
    broker = settings.broker.model_copy(update={"url": proxy.url})
    thrifty = settings.model_copy(update={"broker": broker, "daily_bytes": LIMIT})
    await on_air.announce()
    agent = await start_agent(thrifty, lambda: FakeChild(payload_bytes=PAYLOAD))
    birth = await on_air.device_up()
    problem, lease = "", 0
    while not problem:
        lease += 1
        on_air.script.publish(delta_bytes=1_000)
        await on_air.announce(chunks=False, lease=lease, cohort=EVERYBODY)
        answer = await on_air.wait_for(Body, _update_or_problem)
        if isinstance(answer, Update):
            await on_air.accept("dev-1", answer)
        else:
            assert isinstance(answer, Presence)
            problem = answer.problem
    assert "of the daily budget of 60 kB are used" in problem
    for _ in range(20):  # 30 kB that a device would hear which goes on listening
        on_air.script.publish(delta_bytes=1_000)
        await on_air.announce(chunks=False, lease=lease + 1, cohort=EVERYBODY)
    await agent.stop()
    await proxy.settled()
    assert LIMIT // 2 < proxy.up_bytes + proxy.down_bytes <= LIMIT
    await start_agent(thrifty)
    again = await on_air.wait_for(Presence, lambda body: "daily budget" in body.problem)
    assert again.session > birth.session


def _update_or_problem(body: Body) -> bool:
    return isinstance(body, Update) or (isinstance(body, Presence) and "budget" in body.problem)
