"""Running an agent: as a coroutine among others, or as a process of its own with signals."""

from __future__ import annotations

import asyncio
import signal

from fedmq_edge_agent.shell.board import Board
from fedmq_edge_agent.shell.notify import Notifier
from fedmq_edge_agent.shell.service import AgentService
from fedmq_edge_agent.shell.settings import AgentSettings
from fedmq_edge_agent.shell.trainer import StartChild


async def run_agent(
    settings: AgentSettings,
    *,
    stop: asyncio.Event | None = None,
    start_child: StartChild | None = None,
    notifier: Notifier | None = None,
    board: Board | None = None,
) -> None:
    """Be this device until `stop` is set, or for ever. An unreachable broker is tried again and again.

    Args:
        settings: the device's.
        stop: when set, the agent says goodbye and returns within two seconds.
        start_child: another way to get a trainer, for trials.
        notifier: the line to systemd; None: there is none.
        board: what tells of power, heat, clock and link; None: this one.

    Raises:
        ConfigError: a setting cannot work.
        StoreError: the state folder cannot be used, or another agent uses it.
    """
    service = AgentService(settings, start_child=start_child, notifier=notifier, board=board)
    await service.run(asyncio.Event() if stop is None else stop)


def run_agent_forever(settings: AgentSettings) -> None:
    """Be this device until SIGINT or SIGTERM, which is answered by a goodbye. For the main thread of a process.

    What it logs goes where the caller lets it go.

    Raises:
        ConfigError: a setting cannot work.
        StoreError: the state folder cannot be used, or another agent uses it.
    """
    notifier = Notifier()

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await run_agent(settings, stop=stop, notifier=notifier)

    asyncio.run(main())
