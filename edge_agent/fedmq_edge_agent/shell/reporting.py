"""Letting the status file and systemd know how this device stands, and systemd that the loop turns."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

from fedmq_edge_agent.core.machine import Agent
from fedmq_edge_agent.core.standing import Standing
from fedmq_edge_agent.shell.notify import Notifier
from fedmq_edge_agent.shell.settings import AgentSettings
from fedmq_edge_agent.shell.status import (
    BEAT_S,
    FORMAT,
    StatusFile,
    boot_time,
    resident_bytes,
    start_of,
)


class Reporter:
    """Writes the status when something has changed, and pings while the loop turns.

    Args:
        settings: the device's.
        agent: its core.
        notifier: the line to systemd.
        traffic: bytes sent and received so far.
        trainer_pid: the child's process id, while there is one.
    """

    def __init__(
        self,
        settings: AgentSettings,
        agent: Agent,
        notifier: Notifier,
        *,
        traffic: Callable[[], tuple[int, int]],
        trainer_pid: Callable[[], int | None],
    ) -> None:
        self._settings, self._agent, self._notifier = settings, agent, notifier
        self._traffic, self._trainer_pid = traffic, trainer_pid
        self._file = StatusFile(settings.state_dir)
        self._changed = asyncio.Event()
        self._shown: Standing | None = None
        self._since = self._began = time.monotonic()
        self._started = start_of(os.getpid()) or 0

    def look(self) -> None:
        """Something happened: if it changes how the device stands, that is written soon."""
        standing = self._agent.standing()
        if standing != self._shown:
            if self._shown is None or standing.state != self._shown.state:
                self._since = time.monotonic()
            self._shown = standing
            self._changed.set()

    async def run(self) -> None:
        """Keep the status up to date."""
        while True:
            self._changed.clear()
            self._write()
            await asyncio.sleep(self._file.gap_s)
            try:
                async with asyncio.timeout(max(0.0, BEAT_S - self._file.gap_s)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def ping(self, turn: asyncio.Lock) -> None:
        """Say that we are alive, as often as systemd wants it, and only while events are handled to their end.

        Args:
            turn: is held while an event is handled.
        """
        if self._notifier.watchdog_s is None:
            return
        while True:
            async with turn:
                self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog_s / 3)

    def close(self) -> None:
        """The agent has ended in good order."""
        self._file.remove()

    def _write(self) -> None:
        status = self.status()
        self._file.write(status)
        self._notifier.words(f"{status['state']}: {status['waiting']}")

    def status(self) -> dict[str, Any]:
        """All that the status file says."""
        now, standing = time.monotonic(), self._agent.standing()
        sent, received = self._traffic()
        trainer_pid = self._trainer_pid()
        readings = self._agent.desk.conditions.readings
        return {
            "format": FORMAT,
            "pid": os.getpid(),
            "started": self._started,
            "written_s": round(boot_time(), 3),
            "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": self._settings.id,
            "federation": self._settings.federation,
            "agent_version": self._agent.desk.limits.agent_version,
            "task": self._settings.task,
            "broker": self._settings.broker.address,
            "up_s": round(now - self._began, 1),
            "state_s": round(now - self._since, 1),
            "waiting": self._agent.waiting(now=now),
            **dataclasses.asdict(standing),
            "sent_bytes": sent,
            "received_bytes": received,
            "agent_resident_bytes": resident_bytes(os.getpid()),
            "trainer_pid": trainer_pid,
            "trainer_resident_bytes": resident_bytes(trainer_pid),
            "board": None if readings is None else dataclasses.asdict(readings),
        }
