"""The scripted coordinator on a real broker, step by step under a test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fedmq_protocol.aio import Connection, Message
from fedmq_protocol.chunks import Assembly
from fedmq_protocol.envelope import Envelope, open_envelope
from fedmq_protocol.messages import Body, Offer, Presence, Update, UploadChunk
from tests.broker_fixtures import PATIENCE_S
from tests.edge_agent.scripted import ScriptedCoordinator

B = TypeVar("B", bound=Body)

LEASE_S = 600.0
"""No lease runs out because a machine does much else."""


class OnAir:
    """What devices say arrives in `heard`, in order; `wait_for` takes the next that fits.

    Args:
        connection: a started connection.
        script: what it says.
    """

    def __init__(self, connection: Connection, script: ScriptedCoordinator) -> None:
        self.connection = connection
        self.script = script
        script.lease_s = LEASE_S
        self.heard: list[Envelope] = []
        self._taken = 0
        self._news = asyncio.Event()
        self._pump = asyncio.create_task(self._listen())

    async def close(self) -> None:
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)

    async def _listen(self) -> None:
        await self.connection.subscribe(self.script.topics.coordinator_filters())
        async for event in self.connection.events():
            if isinstance(event, Message) and not event.topic.endswith("/status"):
                self.heard.append(open_envelope(event.topic, event.payload))
                self._news.set()

    async def wait_for(
        self, kind: type[B], fits: Callable[[B], bool] = lambda _: True, *, timeout_s: float = PATIENCE_S
    ) -> B:
        """The next body of a kind, of those not taken yet."""
        async with asyncio.timeout(timeout_s):
            while True:
                while self._taken < len(self.heard):
                    body = self.heard[self._taken].body
                    self._taken += 1
                    if isinstance(body, kind) and fits(body):
                        return body
                self._news.clear()
                await self._news.wait()

    def all_of(self, kind: type[B]) -> list[B]:
        return [envelope.body for envelope in self.heard if isinstance(envelope.body, kind)]

    async def say(self, message: tuple[str, bytes], *, retain: bool = False) -> None:
        await self.connection.publish(*message, retain=retain)

    async def announce(self, *, chunks: bool = True, **changes: object) -> None:
        """Status, chunks and announcement, all retained."""
        await self.say(self.script.status(), retain=True)
        if chunks:
            for topic, packet in self.script.retained().items():
                await self.connection.publish(topic, packet, retain=True)
        await self.say(self.script.announcement(**changes), retain=True)  # type: ignore[arg-type]

    async def device_up(self, *, after: int = 0) -> Presence:
        """The birth certificate of a device that can train, of a session after the given one, taken already or not."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for presence in self.all_of(Presence):
                    if presence.online and not presence.problem and presence.session > after:
                        return presence
                self._news.clear()
                await self._news.wait()

    async def receive(self, device: str, *, after: int = 0) -> Update:
        """An update, offered or whole, without a receipt.

        Args:
            device: who sends it.
            after: updates up to this number are passed over: an agent sends one again whose receipt is late.
        """
        while True:
            body = await self.wait_for(Body)
            match body:
                case Update(header=header) if header.counter > after:
                    return body
                case Offer(header=header, chunk_bytes=chunk_bytes) if header.counter > after:
                    update = (device, header.run, header.counter)
                    self.script.uploads.setdefault(update, Assembly(header.payload, chunk_bytes))
                    offered = header
                    await self.say(self.script.credit(device, header.run, header.counter))
                case UploadChunk(run=run, counter=counter, index=index, data=data) if counter > after:
                    assembly = self.script.uploads[device, run, counter]
                    assembly.add(index, data)
                    if assembly.complete:
                        return Update(header=offered, data=assembly.result())
                    await self.say(self.script.credit(device, run, counter))
                case _:
                    pass

    async def accept(self, device: str, update: Update) -> bool:
        """Count it, and send the receipt."""
        new = self.script.count(device, update.header.run, update.header.counter, update.data)
        await self.say(self.script.receipt(device, update.header.counter, run=update.header.run))
        return new
