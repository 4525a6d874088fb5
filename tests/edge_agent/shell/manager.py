"""A service manager's end of sd_notify: a socket that a test reads."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.broker_fixtures import PATIENCE_S


class Manager:
    """Listens as systemd would.

    Args:
        path: of the socket; beginning with `@`: in the abstract name space.
    """

    def __init__(self, path: Path | str) -> None:
        self.address = str(path)
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 - the socket module's signature
        self._socket.bind("\0" + self.address[1:] if self.address[0] == "@" else self.address)

    def environ(self, *, watchdog_s: float | None = None) -> dict[str, str]:
        """What systemd puts into the environment of a service."""
        watchdog = {} if watchdog_s is None else {"WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        return {"NOTIFY_SOCKET": self.address, **watchdog}

    def drain(self) -> list[str]:
        """All that has come, from the beginning."""
        while True:
            try:
                self.heard.append(self._socket.recv(4_096).decode())
            except BlockingIOError:
                return self.heard

    def count(self, line: str) -> int:
        """How often something was said."""
        return self.drain().count(line)

    async def until(self, start: str, *, timeout_s: float = PATIENCE_S) -> str:
        """The first message that begins so, from now on."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            while True:
                text = (await loop.sock_recv(self._socket, 4_096)).decode()
                self.heard.append(text)
                if text.startswith(start):
                    return text

    def close(self) -> None:
        self._socket.close()
