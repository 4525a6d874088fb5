"""When a checkpoint of the state is taken, and how it gets to disk without anybody waiting for it.

It is taken between two batches of events, when all that the core decided is in the journal: that is a matter of
milliseconds. A thread of its own writes it, in transactions between which facts are appended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from fedmq_coordinator.core.checkpoint import Checkpoint
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.shell.store import Journal
from fedmq_protocol.errors import StoreError

_log = logging.getLogger(__name__)

EVERY_FACTS: Final = 4_096
EVERY_WORK_S: Final = 0.5
"""So much is folded again at a start, at most. Most of the work is decoding updates, here and there."""
_WORK_A_COST: Final = 20
"""However often that would be, taking them takes a twentieth of the time at most."""


@dataclass
class Checkpointer:
    """Takes checkpoints of one core.

    Attributes:
        core: whose state.
        journal: where they go, and whose facts they stand for.
        facts: appended since the last one.
        work_s: what it took the core to come to them, in seconds of this thread's time.
    """

    core: Coordinator
    journal: Journal
    facts: int = 0
    work_s: float = 0.0
    _cost_s: float = 0.0
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    )
    _writing: asyncio.Future[None] | None = None

    @property
    def due(self) -> bool:
        """Whether it is worth the while; while one is being written it is not."""
        if self._writing is not None and not self._writing.done():
            return False
        enough = self.facts >= EVERY_FACTS or self.work_s >= EVERY_WORK_S
        return enough and self.work_s >= _WORK_A_COST * self._cost_s

    def take(self) -> bool:
        """Take one now if that can be, and have it written aside; to be called between two batches."""
        taken = self._taken()
        if taken is None:
            return False
        self.facts, self.work_s = 0, 0.0
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write, taken)
        return True

    async def close(self, *, well: bool) -> None:
        """End; `well`: nothing went wrong, so that a last one spares the next start the folding."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if well and self.facts and self.take() and self._writing is not None:
            await asyncio.wait([self._writing])
        self._thread.shutdown()

    def _taken(self) -> Checkpoint | None:
        if self.core.state.num_facts != self.journal.num_facts:
            return None  # some are still on their way to the disk
        began = time.thread_time()
        taken = self.core.checkpoint()
        if taken is not None:
            self._cost_s = time.thread_time() - began
        return taken

    def _write(self, taken: Checkpoint) -> None:
        began = time.monotonic()
        try:
            size = self.journal.checkpoints.keep(taken.number, taken.pieces())
        except StoreError as error:
            _log.warning("no checkpoint of fact %d: %s", taken.number, error)
        else:
            _log.debug(
                "checkpoint of fact %d: %d bytes, written in %.3f s",
                taken.number,
                size,
                time.monotonic() - began,
            )
