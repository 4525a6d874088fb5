"""Running an agent: as a coroutine among others, or as a process of its own with signals and a log."""

from __future__ import annotations

import asyncio
import logging
import signal

from fedmq_edge_agent.shell.service import AgentService
from fedmq_edge_agent.shell.settings import AgentSettings
from fedmq_edge_agent.shell.trainer import StartChild


async def run_agent(
    settings: AgentSettings, *, stop: asyncio.Event | None = None, start_child: StartChild | None = None
) -> None:
    """Be this device until `stop` is set, or for ever. An unreachable broker is tried again and again.

    Args:
        settings: the device's.
        stop: when set, the agent says goodbye and returns within two seconds.
        start_child: another way to get a trainer, for trials.

    Raises:
        ConfigError: a setting cannot work.
        StoreError: the state folder cannot be used, or another agent uses it.
    """
    service = AgentService(settings, start_child=start_child)
    await service.run(asyncio.Event() if stop is None else stop)


class LineFormatter(logging.Formatter):
    """One line a record: when, how grave, which device, which run and lease, and what."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        where = " ".join(
            f"{name}={value}"
            for name in ("device", "run", "round")
            if (value := getattr(record, name, "")) != ""
        )
        parts = [self.formatTime(record), f"{record.levelname.lower():7}", where, record.getMessage()]
        line = " ".join(part for part in parts if part)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_log(level: str = "info") -> None:
    """Let the agent's records go to standard error, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    root = logging.getLogger("fedmq_edge_agent")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


def run_agent_forever(settings: AgentSettings, *, log_level: str = "info") -> None:
    """Be this device until SIGINT or SIGTERM, which is answered by a goodbye. For the main thread of a process.

    Raises:
        ConfigError: a setting cannot work.
        StoreError: the state folder cannot be used, or another agent uses it.
    """
    configure_log(log_level)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await run_agent(settings, stop=stop)

    asyncio.run(main())
