"""A device's messages on their way out: `fedmq_edge_agent.shell.post` under virtual time.

Two queues, of each one message under way: chunks of uploads, and the rest. What is queued when the connection is lost
is dropped, but for what was to be forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from fedmq_edge_agent.core.effects import Send, SendUpdate, SendUploadChunk, Subscribe, Unsubscribe
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.messages import Body, Offer, Presence, Update, UploadChunk

if TYPE_CHECKING:
    from fedmq.simulation.device import VirtualDevice

Outgoing = Subscribe | Unsubscribe | Send | SendUpdate | SendUploadChunk


class _Queue:
    def __init__(self, send: Callable[[Outgoing, Callable[[], object]], bool]) -> None:
        self._send = send
        self._waiting: deque[Outgoing] = deque()
        self._under_way: Outgoing | None = None
        self._turn = 0

    def put(self, outgoing: Outgoing) -> None:
        again = isinstance(outgoing, SendUpdate | SendUploadChunk) and outgoing == self._under_way
        if not again and outgoing not in self._waiting:
            self._waiting.append(outgoing)
            self._pump()

    def keep(self, wanted: Callable[[Outgoing], bool]) -> None:
        """Drop all others; and what is under way is lost."""
        self._waiting = deque(outgoing for outgoing in self._waiting if wanted(outgoing))
        self._under_way = None
        self._turn += 1
        self._pump()

    def _pump(self) -> None:
        while self._under_way is None and self._waiting:
            self._under_way = self._waiting.popleft()
            self._turn += 1
            turn = self._turn

            def told(turn: int = turn) -> None:
                if turn == self._turn:
                    self._under_way = None
                    self._pump()

            if not self._send(self._under_way, told):
                self._under_way = None


class VirtualPost:
    """The outgoing queue of one device.

    Args:
        device: whose.
    """

    def __init__(self, device: VirtualDevice) -> None:
        self._device = device
        self._first = _Queue(self._send)
        self._bulk = _Queue(self._send)

    def put(self, outgoing: Outgoing) -> None:
        """Queue it, unless the very same waits already."""
        (self._bulk if isinstance(outgoing, SendUploadChunk) else self._first).put(outgoing)

    def connection_lost(self) -> None:
        """Drop what was to be said; keep what was to be forgotten, or it would be subscribed to again."""
        self._bulk.keep(lambda _: False)
        self._first.keep(lambda outgoing: isinstance(outgoing, Unsubscribe))

    def _send(self, outgoing: Outgoing, told: Callable[[], object]) -> bool:
        """Hand it over; False: it is over already."""
        device = self._device
        connection, topics, name = device.connection, device.topics, device.name
        match outgoing:
            case Subscribe(wanted):
                connection.subscribe(wanted)
                return False
            case Unsubscribe(unwanted):
                connection.unsubscribe(unwanted)
                return False
            case Send(topic, body, retain):
                if isinstance(body, Presence):
                    body = body.model_copy(update={"traffic": device.traffic})
                if isinstance(body, Offer):
                    header = body.header.model_copy(update={"traffic": device.traffic})
                    body = body.model_copy(update={"header": header})
                self._publish(topic, body, told, retain=retain)
            case SendUpdate(header, file):
                data = device.disk.files.get((header.run, file))
                if data is None or blob_ref(data) != header.payload:
                    device.payload_lost(header.run, header.counter, file)
                    return False
                header = header.model_copy(update={"traffic": device.traffic})
                self._publish(topics.up(name, "update"), Update(header=header, data=data), told)
            case SendUploadChunk(run, counter, index, file, offset, size):
                data = device.disk.files.get((run, file))
                if data is None or blob_ref(data) != outgoing.payload:
                    device.payload_lost(run, counter, file)
                    return False
                piece = data[offset : offset + size]
                chunk = UploadChunk(run=run, counter=counter, index=index, data=piece)
                self._publish(topics.up(name, "chunk"), chunk, told)
            case _:
                assert_never(outgoing)
        return True

    def _publish(self, topic: str, body: Body, told: Callable[[], object], *, retain: bool = False) -> None:
        device = self._device
        packed = device.agent.desk.packs and not retain  # who comes later may read less
        device.connection.publish(topic, device.seal(topic, body, packed=packed), retain=retain, told=told)
