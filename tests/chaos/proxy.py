"""A bad network in one process: each participant reaches the broker by a door of its own, which hears and mistreats it.

A door can be shut (connections break at once, new ones are refused), frozen (they stand, and nothing passes), or slow
(so many bytes a second each way). What passes is handed to a listener piece by piece, before it is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tests.chaos.packets import Conversation, Publish

Way: TypeAlias = Literal["up", "down"]
"""up: from the participant to the broker."""
Heard: TypeAlias = Callable[[str, Way, Publish], None]

_READ_BYTES: Final = 16_384
_PATIENCE_S: Final = 30.0


@dataclass(eq=False)
class Door:
    """One participant's way to the broker.

    Attributes:
        name: whose.
        bytes_a_second: None: as fast as it goes.
        port: where the participant connects.
    """

    name: str
    broker_port: int
    heard: Heard
    bytes_a_second: float | None = None
    port: int = 0
    _shut: bool = False
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self, host: str) -> None:
        """Listen on a free port."""
        self._flowing.set()
        self._server = await asyncio.start_server(self._serve, host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Break what there is, and refuse what comes."""
        self._shut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Let nothing pass."""
        self._flowing.clear()

    def mend(self) -> None:
        """Be a good way again."""
        self._shut, self.bytes_a_second = False, None
        self._flowing.set()

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self._shut and self._flowing.is_set() and self.bytes_a_second is None

    async def close(self) -> None:
        """Break everything, for good."""
        self.shut()
        self._flowing.set()
        if self._server is not None:
            self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        if self._shut:
            writer.transport.abort()
            return
        mine = [writer]
        self._writers.add(writer)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.broker_port)
            mine.append(to_writer)
            self._writers.add(to_writer)
            conversation = Conversation()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, to_writer, "up", conversation))
                both.create_task(self._pass(to_reader, writer, "down", conversation))
        except (OSError, TimeoutError, ExceptionGroup) as error:
            if isinstance(error, ExceptionGroup) and error.split(OSError)[1] is not None:
                raise
        finally:
            for each in mine:
                self._writers.discard(each)
                each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, conversation: Conversation
    ) -> None:
        take = conversation.up if way == "up" else conversation.down
        while data := await reader.read(_READ_BYTES):
            await self._flowing.wait()
            if self.bytes_a_second is not None:
                await asyncio.sleep(len(data) / self.bytes_a_second)
            for publish in take(data):
                self.heard(self.name, way, publish)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
