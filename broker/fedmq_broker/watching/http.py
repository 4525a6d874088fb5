"""A picture and its metrics over HTTP/1.1: `/metrics` for Prometheus, `/picture` for whoever shows it.

As much of HTTP as answering a GET takes, in the exporter's own event loop. Who may connect may read; it listens on
loopback unless it is told otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from fedmq_broker.watching.metrics import CONTENT_TYPE, DEFAULT_CAP, exposition
from fedmq_broker.watching.picture import Picture

METRICS: Final = "/metrics"
PICTURE: Final = "/picture"
_MAX_HEAD_BYTES: Final = 8_192
_MAX_CONNECTIONS: Final = 32
_TIMEOUT_S: Final = 10.0
_HOME: Final = "fedmq broker exporter: /metrics for Prometheus, /picture for programs\n"


class Pages:
    """Serves what `look` sees at the moment of each request.

    Args:
        look: makes a picture.
        cap: of devices and clients that metrics name.
    """

    def __init__(self, look: Callable[[], Picture], *, cap: int = DEFAULT_CAP) -> None:
        self._look = look
        self._cap = cap
        self._num_open = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the URL.

        Raises:
            OSError: the address cannot be bound.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=_MAX_HEAD_BYTES)
        bound_host, bound_port = self._server.sockets[0].getsockname()[:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        return f"http://{shown}:{bound_port}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    def answer(self, method: str, target: str) -> tuple[HTTPStatus, str, str]:
        """Status, type of content, and text of the answer to a request."""
        path = target.partition("?")[0]
        if method not in {"GET", "HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "only GET\n"
        match path:
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE, exposition(self._look(), cap=self._cap)
            case "/picture":
                return HTTPStatus.OK, "application/json", self._look().model_dump_json() + "\n"
            case "/":
                return HTTPStatus.OK, "text/plain", _HOME
            case _:
                return HTTPStatus.NOT_FOUND, "text/plain", _HOME

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_open += 1
        try:
            if self._num_open <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._answer(reader, writer)
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has left, or asks for nothing that we serve
        finally:
            self._num_open -= 1
            writer.transport.abort()  # who does not read what was asked for keeps neither it nor us

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):  # noqa: PLR2004  # method, target, version
            status, kind, text = HTTPStatus.BAD_REQUEST, "text/plain", "this is no HTTP/1.1\n"
        else:
            status, kind, text = self.answer(words[0], words[1])
        body = text.encode()
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if words[0] == "HEAD" else body))
        await writer.drain()
