"""What systemd hears of an agent: that it has begun, how it stands, that its loop turns, that it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedmq_broker.probe import find_free_port
from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.shell.notify import Notifier
from fedmq_edge_agent.shell.service import AgentService
from fedmq_protocol.broker_settings import BrokerSettings
from tests.edge_agent.shell.conftest import StartProcess
from tests.edge_agent.shell.fake_child import FakeChild
from tests.edge_agent.shell.manager import Manager

WATCHDOG_S = 0.3


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.fixture
def nowhere(tmp_path: Path) -> AgentSettings:
    """A device whose network is not there yet."""
    broker = BrokerSettings(
        url=f"mqtt://127.0.0.1:{find_free_port('127.0.0.1')}", reconnect_min_s=0.05, reconnect_max_s=0.2
    )
    return AgentSettings(id="dev-1", state_dir=tmp_path / "dev-1", task="unused.py", broker=broker)


# ------------------------------------------------------------------------------------------------ the line


def test_each_word_is_a_datagram_and_status_is_said_once(manager: Manager) -> None:
    notifier = Notifier(manager.environ())
    notifier.ready()
    notifier.words("waiting\nfor a lease")
    notifier.words("waiting for a lease")
    notifier.alive()
    notifier.stopping()
    assert manager.drain() == ["READY=1", "STATUS=waiting for a lease", "WATCHDOG=1", "STOPPING=1"]


def test_a_name_in_the_abstract_space_works_too() -> None:
    manager = Manager(f"@fedmq-test-{os.getpid()}")
    Notifier(manager.environ()).ready()
    assert manager.drain() == ["READY=1"]
    manager.close()


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/gone"}]
)
def test_where_nobody_listens_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready()
    notifier.words("well")
    assert notifier.watchdog_s is None


def test_what_systemd_says_is_not_left_to_child_processes(manager: Manager) -> None:
    environ = {"PATH": "/bin", "WATCHDOG_PID": str(os.getpid()), **manager.environ(watchdog_s=10)}
    assert Notifier(environ).watchdog_s == 10
    assert environ == {"PATH": "/bin"}


def test_a_watchdog_for_another_process_is_not_ours(manager: Manager) -> None:
    assert Notifier({**manager.environ(watchdog_s=10), "WATCHDOG_PID": "1"}).watchdog_s is None


# ------------------------------------------------------------------------------------------------ the agent


async def begin(settings: AgentSettings, environ: dict[str, str]) -> tuple[AgentService, asyncio.Event, Any]:
    async def start_child() -> FakeChild:
        return FakeChild()

    service = AgentService(settings, start_child=start_child, notifier=Notifier(environ))
    stop = asyncio.Event()
    return service, stop, asyncio.create_task(service.run(stop))


async def test_it_is_ready_without_a_network_and_says_what_it_waits_for(
    manager: Manager, nowhere: AgentSettings
) -> None:
    _, stop, running = await begin(nowhere, manager.environ())
    await manager.until("READY=1")
    said = await manager.until("STATUS=offline")
    assert "trying again" in said
    stop.set()
    await running
    assert manager.count("STOPPING=1") == 1


async def test_it_pings_while_its_loop_turns_and_events_are_handled_to_their_end(
    manager: Manager, nowhere: AgentSettings
) -> None:
    service, stop, running = await begin(nowhere, manager.environ(watchdog_s=WATCHDOG_S))
    for _ in range(3):
        await manager.until("WATCHDOG=1")
    async with service._turn:  # an event that never ends; the loop turns on
        manager.drain()
        before = manager.count("WATCHDOG=1")
        with pytest.raises(TimeoutError):
            await manager.until("WATCHDOG=1", timeout_s=3 * WATCHDOG_S)
        assert manager.count("WATCHDOG=1") == before
    await manager.until("WATCHDOG=1")
    stop.set()
    await running


async def test_a_process_whose_loop_hangs_pings_no_more(
    manager: Manager, nowhere: AgentSettings, start_process: StartProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole process: SIGSTOP stands for a loop that is stuck in a system call."""
    for name, value in manager.environ(watchdog_s=WATCHDOG_S).items():
        monkeypatch.setenv(name, value)
    process = start_process(nowhere)
    await manager.until("READY=1")
    await manager.until("WATCHDOG=1")
    process.send_signal(signal.SIGSTOP)
    until_stopped(process.pid)
    manager.drain()
    with pytest.raises(TimeoutError):
        await manager.until("WATCHDOG=1", timeout_s=3 * WATCHDOG_S)
    process.send_signal(signal.SIGCONT)
    await manager.until("WATCHDOG=1")
    process.send_signal(signal.SIGTERM)
    await manager.until("STOPPING=1")
    assert process.wait(timeout=60) == 0


def until_stopped(pid: int) -> None:
    give_up = time.monotonic() + 60
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < give_up
        time.sleep(0.01)
