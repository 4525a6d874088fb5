"""What the coordinator has to say, on its way to the broker: many at once, in order topic by topic.

MQTT keeps the order of what is published on one connection, so messages are handed over in the order in which they were
decided, and only the waiting for acknowledgements goes on side by side.

Nothing here is promised: what is queued when the connection is lost is dropped, since the core says it anew after the
next `BrokerConnected`, and devices ask again for what they miss. So the queue may have a bound, and the loop that fills
it never waits for the broker: it must stay free to take what the broker sends, acknowledgements behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Protocol

from fedmq_coordinator.core.effects import Clear, Send
from fedmq_protocol.aio import RefusedError
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.errors import ConnectionFailedError

_log = logging.getLogger(__name__)

MAX_QUEUED: Final = 20_000
"""Messages; several for each of thousands of devices."""
_UNDER_WAY: Final = 32


class Publisher(Protocol):
    """As much of a `fedmq_protocol.aio.Connection` as is needed here."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = ...) -> None: ...


class Outbox:
    """Seals and publishes messages in the background, from `start` to `stop`."""

    def __init__(self, publisher: Publisher, sealer: Sealer) -> None:
        self._publisher = publisher
        self._sealer = sealer
        self._queue: deque[Send | Clear] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._slots = asyncio.Semaphore(_UNDER_WAY)
        self._under_way: set[asyncio.Task[None]] = set()
        self._pump: asyncio.Task[None] | None = None
        self._overflowing = False

    def start(self) -> None:
        self._pump = asyncio.create_task(self._run(), name="outbox")

    def put(self, message: Send | Clear) -> None:
        """Queue a message; beyond `MAX_QUEUED` it is dropped, and that is said once."""
        if len(self._queue) >= MAX_QUEUED:
            if not self._overflowing:
                _log.warning(
                    "%d messages wait for the broker; more are dropped until it takes them", MAX_QUEUED
                )
            self._overflowing = True
            return
        self._overflowing = False
        self._queue.append(message)
        self._emptied.clear()
        self._filled.set()

    def drop_all(self) -> None:
        """The connection is lost: forget what is queued."""
        self._queue.clear()
        self._settle()

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged or dropped, for so long at most."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        except TimeoutError:
            _log.warning(
                "%d messages were not acknowledged by the broker", len(self._queue) + len(self._under_way)
            )

    async def stop(self) -> None:
        """End, whatever is still queued."""
        tasks = [*self._under_way, *([self._pump] if self._pump is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            while not self._queue:
                self._filled.clear()
                await self._filled.wait()
            await self._slots.acquire()
            if not self._queue:  # dropped meanwhile
                self._slots.release()
                continue
            # A task begins in the order of its making, and hands its packet over before it first waits.
            task = asyncio.create_task(self._publish(self._queue.popleft()))
            self._under_way.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._slots.release()
        self._settle()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a message could not be published", exc_info=error)

    def _settle(self) -> None:
        if not self._queue and not self._under_way:
            self._emptied.set()

    async def _publish(self, message: Send | Clear) -> None:
        match message:
            case Send(topic=topic, body=body, retain=retain):
                payload = self._sealer.seal(topic, body)
            case Clear(topic=topic):
                payload, retain = b"", True
        try:
            await self._publisher.publish(topic, payload, retain=retain)
        except RefusedError as error:
            _log.warning("the broker refuses what the coordinator says on %s: %s", topic, error)
        except ConnectionFailedError as error:
            _log.debug("not sent on %s: %s", topic, error)
        except ValueError as error:
            _log.error("not sent: %s", error)  # the text says it all
