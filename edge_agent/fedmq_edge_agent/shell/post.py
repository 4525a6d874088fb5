"""Messages on their way out: sealed and published one after the other, in order, and dropped when the connection is.

Chunks of an upload have a queue of their own, of which one is under way at a time: presence, reports and requests do
not wait for a large update, but for one chunk of it at most.

What is dropped is no loss: the core sends again whatever has no receipt. Nothing waits here twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import assert_never

from fedmq_edge_agent.core.effects import Send, SendUpdate, SendUploadChunk, Subscribe, Unsubscribe
from fedmq_edge_agent.shell.disk import Disk
from fedmq_protocol.aio import Connection
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.errors import ConnectionFailedError, StoreError
from fedmq_protocol.messages import Body, Offer, Presence, Update, UploadChunk
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

_log = logging.getLogger(__name__)

Outgoing = Subscribe | Unsubscribe | Send | SendUpdate | SendUploadChunk


class _Queue:
    """First in, first out, and nothing twice.

    On a slow link a packet is under way for longer than the core waits for an answer: what of an update it wants sent
    again then is not queued behind itself.
    """

    def __init__(self) -> None:
        self._waiting: deque[Outgoing] = deque()
        self._filled = asyncio.Event()
        self._under_way: Outgoing | None = None

    def put(self, outgoing: Outgoing) -> None:
        again = isinstance(outgoing, SendUpdate | SendUploadChunk) and outgoing == self._under_way
        if not again and outgoing not in self._waiting:
            self._waiting.append(outgoing)
            self._filled.set()

    def keep(self, wanted: Callable[[Outgoing], bool]) -> None:
        """Drop all others; and what is under way is lost."""
        self._waiting = deque(outgoing for outgoing in self._waiting if wanted(outgoing))
        self._under_way = None

    async def take(self) -> Outgoing:
        """The next, once there is one; the one before is done with."""
        self._under_way = None
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        self._under_way = self._waiting.popleft()
        return self._under_way


class Post:
    """The outgoing queue of one agent.

    Args:
        connection: where it goes out.
        topics: of the federation.
        device: the sender.
        key: the sender's.
        disk: where payloads are read from.
        payload_lost: told the run, the counter and the file of an update that cannot be sent, because its file is
            not there or not what it was.
        packs: whether the coordinator reads the shorter form of envelopes, as far as is known.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        topics: Topics,
        device: str,
        key: SigningKey,
        disk: Disk,
        payload_lost: Callable[[str, int, str], None],
        packs: Callable[[], bool] = bool,
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._device = device
        self._about = {"device": device}
        self._key = key
        self._disk = disk
        self._payload_lost = payload_lost
        self._packs = packs
        self._whole: tuple[str, str] | None = None
        """The file of which chunks are sent: checked as a whole once an offer."""
        self._sealer = Sealer(sender=device, epoch=0, key=key)
        self._first = _Queue()
        self._bulk = _Queue()

    def begin_session(self, session: int) -> None:
        """Sign with this session number from now on."""
        self._sealer = Sealer(sender=self._device, epoch=session, key=self._key)

    def seal(self, topic: str, body: Body) -> bytes:
        """A packet's payload."""
        return self._sealer.seal(topic, body)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received on the socket since the start."""
        traffic = self._connection.traffic
        return traffic.bytes_sent, traffic.bytes_received

    def put(self, outgoing: Outgoing) -> None:
        """Queue it, unless the very same waits already."""
        queue = self._bulk if isinstance(outgoing, SendUploadChunk) else self._first
        queue.put(outgoing)

    def connection_lost(self) -> None:
        """Drop what was to be said; keep what was to be forgotten, or it would be subscribed to again."""
        self._bulk.keep(lambda _: False)
        self._first.keep(lambda outgoing: isinstance(outgoing, Unsubscribe))

    async def run(self) -> None:
        """Send what is queued, for ever."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._empty(self._first))
            both.create_task(self._empty(self._bulk))

    async def _empty(self, queue: _Queue) -> None:
        while True:
            await self._send(await queue.take())

    async def _send(self, outgoing: Outgoing) -> None:
        try:
            match outgoing:
                case Subscribe(topics):
                    await self._connection.subscribe(topics)
                case Unsubscribe(topics):
                    await self._connection.unsubscribe(topics)
                case Send(topic, body, retain):
                    if isinstance(body, Presence):
                        body = body.model_copy(update={"traffic": self.traffic})
                    if isinstance(body, Offer):
                        self._whole = None
                        header = body.header.model_copy(update={"traffic": self.traffic})
                        body = body.model_copy(update={"header": header})
                    await self._publish(topic, body, retain=retain)
                case SendUpdate(header, file):
                    data = self._disk.read(header.run, file)
                    if data is None or blob_ref(data) != header.payload:
                        self._payload_lost(header.run, header.counter, file)
                        return
                    header = header.model_copy(update={"traffic": self.traffic})
                    await self._publish(
                        self._topics.up(self._device, "update"), Update(header=header, data=data)
                    )
                case SendUploadChunk():
                    await self._send_chunk(outgoing)
                case _:
                    assert_never(outgoing)
        except ConnectionFailedError as error:
            _log.debug("not sent: %s", error, extra=self._about)
        except StoreError as error:
            _log.warning("not sent, to be tried again: %s", error, extra=self._about)
        except ValueError as error:
            _log.error("not sent: %s", error, extra=self._about)  # the line says all

    async def _send_chunk(self, send: SendUploadChunk) -> None:
        if self._whole != (send.run, send.file):
            self._whole = None
            if not await asyncio.to_thread(self._disk.holds, send.run, send.file, send.payload):
                self._payload_lost(send.run, send.counter, send.file)
                return
            self._whole = send.run, send.file
        data = self._disk.read(send.run, send.file, send.offset, send.size)
        if data is None or len(data) != send.size:
            self._whole = None
            self._payload_lost(send.run, send.counter, send.file)
            return
        chunk = UploadChunk(run=send.run, counter=send.counter, index=send.index, data=data)
        await self._publish(self._topics.up(self._device, "chunk"), chunk)

    async def _publish(self, topic: str, body: Body, *, retain: bool = False) -> None:
        packed = self._packs() and not retain  # who comes later may read less
        packet = self._sealer.seal(topic, body, packed=packed)
        await self._connection.publish(topic, packet, retain=retain)

    async def goodbye(self, presence: Presence) -> None:
        """Publish the last presence, past the queue.

        Raises:
            ConnectionFailedError: there is no connection.
        """
        body = presence.model_copy(update={"traffic": self.traffic})
        await self._publish(self._topics.presence(self._device), body, retain=True)
