"""How much may be under way to the broker at once: a bound on messages and on bytes, first come, first served."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Window:
    """Admission for publishing.

    The bound on bytes keeps a ping from waiting behind a long queue on a slow link: what stands between it and the
    broker is at most `max_bytes`, or one message.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._free_messages = max_messages
        self._max_bytes = self._free_bytes = max_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, payload_bytes: int) -> int:
        """Wait for room. Returns what to hand back to `release`."""
        cost = min(payload_bytes, self._max_bytes)  # a message above the bound passes alone
        if not self._waiting and self._fits(cost):
            self._take(cost)
            return cost
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append((cost, admitted))
        try:
            await admitted
        except asyncio.CancelledError:
            if not admitted.cancelled():
                self.release(cost)  # admitted and cancelled in the same turn
            else:
                with contextlib.suppress(ValueError):  # it may have been passed over already
                    self._waiting.remove((cost, admitted))
                self._admit()  # whoever stood behind may fit
            raise
        return cost

    def release(self, cost: int) -> None:
        """Give back what `acquire` returned."""
        self._free_messages += 1
        self._free_bytes += cost
        self._admit()

    def _fits(self, cost: int) -> bool:
        return self._free_messages > 0 and self._free_bytes >= cost

    def _take(self, cost: int) -> None:
        self._free_messages -= 1
        self._free_bytes -= cost

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            cost, admitted = self._waiting.popleft()
            if not admitted.cancelled():
                self._take(cost)
                admitted.set_result(None)
