"""What the coordinator has to say, on its way to the broker: many at once, the urgent before the large.

There are three queues, and what stands in an earlier one goes first:

    words      receipts, other announcements, leases, credits, notices: whatever is no chunk of a model
    asked for  chunks that a device has asked for, since the broker did not answer
    chunks     chunks of models, to be retained, and the clearing of those that are; the announcement of a run's first
               version, which nobody can use before its chunks are there

MQTT keeps the order of what is published on one connection, so the messages of a queue are handed over in the order in
which they were decided, and only the waiting for acknowledgements goes on side by side. Chunks are read and sealed when
their turn has come, and few of them are under way at once: what is said meanwhile waits for those alone, neither for
the rest of a model nor for the connection's window, of which they leave a part free.

Nothing here is promised: what is queued when the connection is lost is dropped, since the core says it anew after the
next `BrokerConnected`, and devices ask again for what they miss. Chunks that still stand at the broker are left out.
So the queues may have a bound, and the loop that fills them never waits for the broker: it must stay free to take what
the broker sends, acknowledgements behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Protocol

from fedmq_coordinator.core.effects import Clear, Send, SendChunk
from fedmq_coordinator.shell.standing import Standing
from fedmq_coordinator.shell.store_database import AwayError
from fedmq_protocol.aio import RefusedError
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.errors import ConnectionFailedError, StoreError
from fedmq_protocol.limits import MAX_CHUNKS
from fedmq_protocol.messages import Announcement
from fedmq_protocol.topics import subject

_log = logging.getLogger(__name__)

MAX_WORDS: Final = 20_000
"""Messages; several for each of thousands of devices."""
MAX_WORD_BYTES: Final = 64 * 1024 * 1024
MAX_ASKED: Final = 1_000
"""As many as Mosquitto queues for a client; who is not answered asks again."""
MAX_RETAINED: Final = 4 * MAX_CHUNKS
"""Chunks and clearings: names, since their bytes are not read yet."""
_UNDER_WAY: Final = 32
_TOGETHER: Final = 16
"""Messages that are handed over in one turn of the event loop, and leave by one call of the system."""
CHUNKS_UNDER_WAY: Final = 16
"""Of the twenty messages that a connection has under way; as many as Mosquitto sends on to a client at once."""
CHUNK_BYTES_UNDER_WAY: Final = 260_096
"""Of the 262,144 that a connection has under way: two chunks of the usual size; the rest is for words."""
KEPT_EVERY: Final = 32
"""Chunks; so many at most are published in vain after a restart."""
_HEAD_BYTES: Final = 512
"""About what a chunk's packet holds beside its data."""
_WORD_BYTES: Final = 512
"""What a message takes while it is queued, but for the bytes that it carries."""

Message = Send | SendChunk | Clear
_Name = tuple[str, int, str, int]
"""Of a chunk: run, version, blob, index."""


class Publisher(Protocol):
    """As much of a `fedmq_protocol.aio.Connection` as is needed here."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = ...) -> None: ...


class Outbox:
    """Seals and publishes messages in the background, from `start` to `stop`.

    Args:
        publisher: the connection.
        sealer: signs.
        standing: chunks that the broker had when the last process ended.
        keep: takes what `standing` dumps every now and then, for the next process; must not wait.
    """

    def __init__(
        self,
        publisher: Publisher,
        sealer: Sealer,
        *,
        standing: Standing | None = None,
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        self._publisher = publisher
        self._sealer = sealer
        self._standing = standing or Standing()
        self._keep = keep
        self._unkept = 0
        self._held = False
        """Retained chunks wait for the witness's word."""
        self._words: deque[Send] = deque()
        self._word_bytes = 0
        self._asked: OrderedDict[tuple[str, _Name], SendChunk] = OrderedDict()
        """By a device's topic, or "" for what is to be retained, and the chunk's name."""
        self._retained: deque[Message] = deque()
        self._to_retain: dict[_Name, SendChunk] = {}
        """Those chunks in `_retained` that are still to go."""
        self._said_last: set[str] = set()
        """Topics on which nothing more is said."""
        self._patient: dict[str, Send] = {}
        """The newest to be said on a topic whose place is in `_retained`: later words wait there with the first."""
        self._changed = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._under_way: dict[asyncio.Task[None], int] = {}
        """What is handed over and not acknowledged; of a chunk, its bytes, else 0."""
        self._reading = False
        """A message that is neither queued nor under way waits for the database."""
        self._pump: asyncio.Task[None] | None = None
        self._overflowing = False

    def start(self) -> None:
        self._pump = asyncio.create_task(self._run(), name="outbox")

    @property
    def queued(self) -> int:
        """How many messages wait to be handed over."""
        return len(self._words) + len(self._asked) + len(self._retained)

    def put(self, message: Message) -> None:
        """Queue a message; beyond its queue's bound it is dropped, and that is said once."""
        match message:
            case Send(topic=topic) if topic in self._said_last:
                return
            case Send(topic=topic) if topic in self._patient:
                self._patient[topic] = message
                full = False
            case Send(patient=False):
                full = len(self._words) >= MAX_WORDS or self._word_bytes >= MAX_WORD_BYTES
                if not full:
                    self._words.append(message)
                    self._word_bytes += _size(message)
            case SendChunk(retain=False):
                full = not self._ask(message)
            case Send() | SendChunk() | Clear():
                full = len(self._retained) >= MAX_RETAINED
                if not full:
                    self._retained.append(message)
                    if isinstance(message, SendChunk):
                        self._to_retain[_name(message)] = message
                    elif isinstance(message, Send):
                        self._patient[message.topic] = message
        if full and not self._overflowing:
            _log.warning("%d messages wait for the broker; more are dropped until it takes them", self.queued)
        self._overflowing = full
        if not full:
            self._emptied.clear()
            self._changed.set()

    def put_last(self, message: Send) -> None:
        """Queue a message; what is put on its topic from now on is dropped."""
        self.put(message)
        self._said_last.add(message.topic)

    def _ask(self, chunk: SendChunk) -> bool:
        """Queue what a device has asked for, once; False if there is no room.

        What is about to be retained goes there now, where the device, and maybe others, wait for it already.
        """
        name = _name(chunk)
        if ("", name) in self._asked or (chunk.topic, name) in self._asked:
            return True
        if len(self._asked) >= MAX_ASKED:
            return False
        if name in self._to_retain:
            self._asked["", name] = self._to_retain.pop(name)
        else:
            self._asked[chunk.topic, name] = chunk
        return True

    def drop_all(self) -> None:
        """The connection is lost: forget what is queued."""
        self._words.clear()
        self._word_bytes = 0
        self._asked.clear()
        self._retained.clear()
        self._to_retain.clear()
        self._patient.clear()
        self._held = False
        self._settle()

    def call_witness(self) -> str | None:
        """A connection stands: the topic of the chunk by which to tell what the broker still has, if it had any.

        Chunks wait until `testify` is told what is retained there.
        """
        self._held = self._standing.witness is not None
        return self._standing.witness

    def testify(self, payload: bytes | None) -> None:
        """What the broker has on the witness's topic; None: nothing. What it has not lost is not published again."""
        if self._standing.testify(payload or b""):
            _log.info("the broker still has %d chunks of models", self._standing.num_chunks)
        self._held = False
        self._changed.set()

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged or dropped, for so long at most."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        except TimeoutError:
            _log.warning(
                "%d messages were not acknowledged by the broker", self.queued + len(self._under_way)
            )

    async def stop(self) -> None:
        """End, whatever is still queued."""
        tasks = [*self._under_way, *([self._pump] if self._pump is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        begun = 0
        while True:
            message = self._next()
            if message is None:
                self._settle()
                self._changed.clear()
                await self._changed.wait()
                continue
            try:
                payload = self._seal(message)
            except AwayError:  # the loop does not wait for the database, but a thread may
                self._reading = True
                payload = await asyncio.to_thread(self._seal, message)
                self._reading = False
            if payload is None:
                continue
            # A task begins in the order of its making, and hands its packet over before it first waits.
            task = asyncio.create_task(self._publish(message, payload))
            self._under_way[task] = len(payload) if isinstance(message, SendChunk) else 0
            task.add_done_callback(self._done)
            begun += 1
            if begun % _TOGETHER == 0:
                await asyncio.sleep(0)

    def _next(self) -> Message | None:
        """What goes now; None if that is nothing, or has to wait."""
        if len(self._under_way) >= _UNDER_WAY:
            return None
        if self._words:
            word = self._words.popleft()
            self._word_bytes -= _size(word)
            return word
        if self._asked:
            chunk = next(iter(self._asked.values()))
            return self._asked.popitem(last=False)[1] if self._has_room(chunk) else None
        while self._retained and not self._held:
            message = self._retained[0]
            if isinstance(message, Clear):
                self._retained.popleft()
                return message
            if isinstance(message, Send):
                self._retained.popleft()
                return self._patient.pop(message.topic)
            name = _name(message)
            if self._to_retain.get(name) is not message:  # it went before its turn
                self._retained.popleft()
            elif self._standing.has(message):
                del self._to_retain[name]
                self._retained.popleft()
            elif self._has_room(message):
                del self._to_retain[name]
                return self._retained.popleft()
            else:
                return None
        return None

    def _has_room(self, chunk: SendChunk) -> bool:
        """Whether one more chunk may be under way."""
        sizes = [size for size in self._under_way.values() if size]
        expected = chunk.chunk_bytes + _HEAD_BYTES
        return not sizes or (len(sizes) < CHUNKS_UNDER_WAY and sum(sizes) + expected <= CHUNK_BYTES_UNDER_WAY)

    def _seal(self, message: Message) -> bytes | None:
        """The packet's payload, made when its turn has come; None if its bytes cannot be read.

        Raises:
            AwayError: the database is out of reach, and the loop must not wait for it.
        """
        try:
            if isinstance(message, Clear):
                return b""
            packed = isinstance(message, Send) and message.packed
            return self._sealer.seal(message.topic, message.body, packed=packed)
        except AwayError:
            raise
        except StoreError as error:
            _log.error(
                "not sent on %s: %s", message.topic, error, extra=subject(message.topic)
            )  # the text says it all
            return None

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._changed.set()
        self._settle()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a message could not be published", exc_info=error)

    def _settle(self) -> None:
        if not self.queued and not self._under_way and not self._reading:
            self._emptied.set()

    async def _publish(self, message: Message, payload: bytes) -> None:
        topic = message.topic
        retain = isinstance(message, Clear) or message.retain
        try:
            await self._publisher.publish(topic, payload, retain=retain)
            self._acknowledged(message, payload)
        except RefusedError as error:
            _log.warning(
                "the broker refuses what the coordinator says on %s: %s", topic, error, extra=subject(topic)
            )
        except ConnectionFailedError as error:
            _log.debug("not sent on %s: %s", topic, error, extra=subject(topic))
        except ValueError as error:
            _log.error("not sent: %s", error, extra=subject(topic))  # the text says it all

    def _acknowledged(self, message: Message, payload: bytes) -> None:
        """Remember what stands at the broker, and now and then for the next process, too."""
        match message:
            case SendChunk(retain=True):
                self._standing.acknowledged(message, payload)
                self._unkept += 1
            case Clear(topic=topic) if topic == self._standing.witness:
                self._standing.forget()
                self._unkept = KEPT_EVERY
            case _:
                return
        if self._unkept >= KEPT_EVERY and self._keep is not None:
            self._unkept = 0
            self._keep(self._standing.dump())


def _name(chunk: SendChunk) -> _Name:
    return chunk.head.run, chunk.head.version, chunk.head.blob, chunk.index


def _size(message: Send) -> int:
    carried = message.body.inline_delta if isinstance(message.body, Announcement) else None
    return _WORD_BYTES + len(carried or b"")
