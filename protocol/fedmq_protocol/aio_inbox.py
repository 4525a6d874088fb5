"""What has arrived and not been consumed yet: one queue in order, which knows when it is full and drops nothing."""

from __future__ import annotations

import asyncio
from collections import deque

from fedmq_protocol.aio_events import Connected, Event, Message

_MESSAGE_COST_BYTES = 512  # what a small message costs beside its payload
_HARD_FACTOR = 4


class Inbox:
    """A queue of events for one consumer.

    Args:
        limit_bytes: from here on it is `full`, and from four times this on `overfull`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._events: deque[Event] = deque()
        self._early: list[Message] | None = None
        self._arrived = asyncio.Event()
        self._closed = False
        self._error: BaseException | None = None

    @property
    def full(self) -> bool:
        """Time to stop reading, unless something that we need to read stands behind what fills it."""
        return self._bytes >= self._limit_bytes

    @property
    def overfull(self) -> bool:
        """Time to stop reading, whatever for."""
        return self._bytes >= self._limit_bytes * _HARD_FACTOR

    def put(self, event: Event) -> None:
        if isinstance(event, Message):
            self._bytes += _cost(event)
            if self._early is not None:
                self._early.append(event)
                return
        self._events.append(event)
        self._arrived.set()

    def hold(self) -> None:
        """Keep the messages of a connection that begins until it is announced."""
        self._early = []

    def announce(self, connected: Connected) -> None:
        """Hand out `Connected`, and behind it the messages that were held; nothing if that was done before."""
        if self._early is not None:
            early, self._early = self._early, None
            self.put(connected)
            self._events.extend(early)

    def forget_held(self) -> None:
        """The connection did not come about: what it brought was never acknowledged."""
        if self._early is not None:
            self._bytes -= sum(map(_cost, self._early))
            self._early = None

    async def take(self) -> Event | None:
        """The next event; None once the inbox is closed; the error with which it was closed, raised."""
        while not self._events and not self._closed:
            self._arrived.clear()
            await self._arrived.wait()
        if self._error is not None:
            raise self._error
        if self._closed:
            return None
        event = self._events.popleft()
        if isinstance(event, Message):
            self._bytes -= _cost(event)
        return event

    def close(self, error: BaseException | None = None) -> None:
        """End the stream. What was not consumed was not acknowledged either."""
        self._closed = True
        self._error = self._error or error
        self._arrived.set()


def _cost(message: Message) -> int:
    return len(message.payload) + _MESSAGE_COST_BYTES
