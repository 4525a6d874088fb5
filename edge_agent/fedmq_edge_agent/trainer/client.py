"""A supervisor's end of a trainer: start the child, ask it, and end it when it takes too long. Under asyncio.

    client = await TrainerClient.spawn()
    opened = await client.call("open", task="digits.py", settings={}, role="device", timeout_s=60)
    await client.close()

Imports neither PyTorch nor NumPy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from fedmq_edge_agent.trainer import channel
from fedmq_edge_agent.trainer.channel import ChannelError, Message
from fedmq_edge_agent.trainer.errors import TrainerError

_MODULE = "fedmq_edge_agent.trainer"
_NOT_FOR_CHILDREN = {"MALLOC_ARENA_MAX"}
"""What the supervisor's unit sets for the supervisor alone: threads that compute want arenas of their own."""
_CLOSE_S = 5.0
_CONNECT_RETRY_S = 0.05


def nursery_command(socket_path: Path, *, preload: str | None = None, threads: int = 1) -> list[str]:
    """The command line of a nursery that ends with the process that runs this."""
    command = [sys.executable, "-m", f"{_MODULE}.nursery", "--socket", str(socket_path)]
    command += ["--parent", str(os.getpid()), "--threads", str(threads)]
    return command if preload is None else [*command, "--preload", preload]


class TrainerClient:
    """One trainer child. Made by `spawn` or `connect`; of no use after `trainer-died` or `trainer-timeout`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: asyncio.subprocess.Process | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._process = process
        self._handle: int | None = None  # of a nursery's child: names the process for as long as we hold it
        self._pid: int | None = None if process is None else process.pid
        self._last_id = 0
        self._waiting: dict[int, tuple[str, asyncio.Future[Message]]] = {}
        self._turn = asyncio.Lock()
        self._ended: str | None = None
        self._pump = asyncio.create_task(self._read_replies(), name="trainer-replies")

    @classmethod
    async def spawn(cls, *, threads: int = 0, nice: int = 0) -> TrainerClient:
        """Start a child of its own; it begins to answer when PyTorch is imported, at the first `open`.

        Args:
            threads: of PyTorch; 0: as many as there are cores, less one for everything else.
            nice: how far it stands back behind other processes, 0 to 19.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _MODULE, "--fd", str(theirs.fileno()), "--threads", str(threads)),
                *("--nice", str(nice)),
                stdin=asyncio.subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN},
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for the supervisor alone
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(reader, writer, process)

    @classmethod
    async def connect(cls, nursery: Path, *, timeout_s: float = 60.0) -> TrainerClient:
        """Get a child from a nursery, waiting for it to have started.

        Raises:
            TrainerError: `trainer-died`; there is no nursery.
        """
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(nursery))
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if time.monotonic() > give_up:
                    detail = f"no nursery listens on {nursery}: {error.strerror}"
                    raise TrainerError("trainer-died", detail) from None
                await asyncio.sleep(_CONNECT_RETRY_S)
        client = cls(reader, writer)
        try:
            pid = (await client.call("ping", timeout_s=max(1.0, give_up - time.monotonic())))["pid"]
        except BaseException:
            await client.close()
            raise
        client._pid = pid
        with contextlib.suppress(AttributeError, OSError):  # only Linux has it
            client._handle = os.pidfd_open(pid)
        return client

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._pid

    @property
    def ended(self) -> str | None:
        """Why the child is of no use any more; None while it is."""
        return self._ended

    async def call(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> Message:  # noqa: ANN401 - whatever msgpack can say
        """Ask for one operation; see `host.OPERATIONS`. Further calls wait for their turn.

        Args:
            op: its name.
            timeout_s: end the child if it takes longer, its turn included; None: wait as long as it takes.
            arguments: the operation's.

        Returns:
            The result.

        Raises:
            TrainerError: with the child's code; `trainer-died`; or `trainer-timeout`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async with self._turn:
                    return await self._ask(op, arguments)
        except TimeoutError:
            reason = f"{op} took longer than {timeout_s:g} s, so the trainer was ended"
            self._end(reason)
            self.kill()
            raise TrainerError("trainer-timeout", reason) from None

    def kill(self) -> None:
        """End the child at once, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError, OSError):
            if self._process is not None:
                self._process.kill()
            elif self._handle is not None:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            elif self._pid is not None and self._ended is None:
                os.kill(self._pid, signal.SIGKILL)

    def end(self, reason: str) -> None:
        """End the child at once, and let `reason` be what is said of it."""
        self._end(reason)
        self.kill()

    async def close(self) -> None:
        """Close the channel, on which the child ends, and wait until a spawned one has."""
        self._end("the trainer was closed")
        self._pump.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), _CLOSE_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    async def _ask(self, op: str, arguments: dict[str, Any]) -> Message:
        if self._ended is not None:
            raise TrainerError("trainer-died", self._ended)
        self._last_id += 1
        identity = self._last_id
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[identity] = (op, answer)
        try:
            self._writer.write(channel.pack({"id": identity, "op": op, **arguments}))
            with contextlib.suppress(ConnectionError):  # the reader notices, and knows why
                await self._writer.drain()
            reply = await answer
        finally:
            self._waiting.pop(identity, None)
        if reply.get("ok") is not True:
            room_bytes = int(reply.get("room_bytes", 0))
            raise TrainerError(str(reply.get("code")), str(reply.get("detail")), room_bytes)
        return {name: value for name, value in reply.items() if name not in {"id", "ok"}}

    async def _read_replies(self) -> None:
        """Hand each reply to whoever waits for it; a caller that was cancelled has left, and its reply is dropped."""
        try:
            while (reply := await channel.read_async(self._reader)) is not None:
                waiting = self._waiting.get(reply["id"])
                if waiting is not None and not waiting[1].done():
                    waiting[1].set_result(reply)
            reason = await self._last_words()
        except (ChannelError, OSError) as error:
            reason = f"{await self._last_words()} ({error})"
        self._end(reason)

    async def _last_words(self) -> str:
        doing = next(iter(self._waiting.values()), ("", None))[0]
        during = f" during {doing}" if doing else ""
        if self._process is None:
            return f"the trainer ended{during}"
        try:
            status = await asyncio.wait_for(self._process.wait(), _CLOSE_S)
        except TimeoutError:
            return f"the trainer closed its channel{during}"
        if status == -signal.SIGKILL:
            return (
                f"the trainer was killed by SIGKILL{during}; if nobody did that, the system was out of memory"
            )
        if status < 0:
            return f"the trainer was ended by {signal.Signals(-status).name}{during}"
        return f"the trainer ended{during} with exit status {status}"

    def _end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(TrainerError("trainer-died", reason))
