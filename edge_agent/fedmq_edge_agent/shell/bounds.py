"""What the trainer may take of the board: memory, and a share of the time. Kept from outside, whatever the task does.

Nothing here needs a right that an ordinary user lacks, nor a control group: the supervisor looks at what the child and
its children have taken, and stops and continues them. Niceness the child gives itself (`trainer.process`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any, Final

from fedmq_edge_agent.trainer.client import TrainerClient

LOOK_S: Final = 0.2
"""The child's memory is looked at so often, while it works."""
PERIOD_S: Final = 0.2
"""Of working and resting, where it has a share of the time alone."""
LEAST_S: Final = 0.01
"""It never works or rests for less."""


class BoundedTrainer:
    """A trainer child that is watched while it works.

    Args:
        client: the child.
        memory_limit: bytes of its own that it and its children may have; None: as many as there are.
        share: part of the time that it may work.
    """

    def __init__(self, client: TrainerClient, *, memory_limit: int | None, share: float) -> None:
        self._client = client
        self._limit = memory_limit
        self._share = share

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._client.pid

    async def call(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever msgpack can say
        """As `TrainerClient.call`; while it lasts, the bounds hold.

        Raises:
            TrainerError: likewise; `trainer-died` where it took too much memory, and how much.
        """
        watches = [asyncio.create_task(watch) for watch in self._watches(op)]
        try:
            return await self._client.call(op, timeout_s=timeout_s, **arguments)
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    def kill(self) -> None:
        """End it at once."""
        self._client.kill()

    async def close(self) -> None:
        """Release what belongs to it."""
        await self._client.close()

    def _watches(self, op: str) -> list[Any]:
        pid = self._client.pid
        if pid is None:
            return []
        watches: list[Any] = []
        if self._limit is not None:
            watches.append(self._watch_memory(pid, self._limit, op))
        if self._share < 1:
            watches.append(self._ration(pid))
        return watches

    async def _watch_memory(self, pid: int, limit: int, op: str) -> None:
        while True:
            taken = own_bytes(pid)
            if taken > limit:
                text = (
                    f"trainer killed during {op}: took {taken / 1e6:.0f} MB, {limit / 1e6:.0f} MB are allowed"
                )
                self._client.end(f"{text} (memory_limit)")
                return
            await asyncio.sleep(LOOK_S)

    async def _ration(self, pid: int) -> None:
        """Let it work for a share of each period; it is never left stopped."""
        works_s = max(LEAST_S, self._share * PERIOD_S)
        rests_s = max(LEAST_S, works_s * (1 / self._share - 1))
        try:
            while True:
                await asyncio.sleep(works_s)
                _signal(pid, signal.SIGSTOP)
                await asyncio.sleep(rests_s)
                _signal(pid, signal.SIGCONT)
        finally:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    """To the child, and to its children where it leads a group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def own_bytes(pid: int) -> int:
    """What a process and its descendants have of memory that the system cannot take back: in RAM or swapped out.

    Pages of files do not count, such as PyTorch's libraries and the model files: they give way when room is scarce.
    """
    total = 0
    for each in _family(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{each}/status").read_bytes().splitlines():
                if line.startswith((b"RssAnon:", b"RssShmem:", b"VmSwap:")):
                    total += int(line.split()[1]) * 1024
    return total


def _family(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError, ValueError):
                found += map(int, children.read_bytes().split())
    return found
