"""Serving the API in the coordinator's own event loop, and letting commands on the same machine find it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import secrets
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_protocol.errors import StoreError, UsageError

_log = logging.getLogger(__name__)

TOKEN_FILE: Final = "api-token"  # noqa: S105  # a file's name
ADDRESS_FILE: Final = "api.json"
_DRAIN_S: Final = 2


def load_or_create_token(state_dir: Path) -> str:
    """The token in `<state_dir>/api-token`, made at the first start, readable by its owner alone.

    Raises:
        StoreError: the file cannot be read or written, or is empty.
    """
    path = state_dir / TOKEN_FILE
    try:
        if not path.exists():
            _write_private(path, secrets.token_urlsafe(32) + "\n")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot use the API's token file {path}: {error}") from error
    if not token:
        raise StoreError(
            f"the API's token file {path} is empty: delete it, and the next start makes a new one"
        )
    return token


def bind(settings: CoordinatorSettings) -> socket.socket:
    """A listening socket at `settings.listen`.

    Raises:
        UsageError: the address cannot be had; the text says why.
    """
    host, port = settings.listen_host, settings.listen_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        # create_server adds the address to strerror, which is said already
        why = "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise UsageError(
            f"cannot listen on {settings.listen}: {why.partition(' (while attempting')[0]}; "
            "set listen in [coordinator] to another one, or 127.0.0.1:0 for any free port"
        ) from None
    if not _is_loopback(listener.getsockname()[0]):
        _log.warning(
            "the API listens beyond this machine: its token travels unencrypted; put a TLS proxy in front"
        )
    return listener


class ApiServer:
    """Serves an app on a bound socket between `start` and `stop`."""

    def __init__(self, app: FastAPI, listener: socket.socket, state_dir: Path) -> None:
        address = listener.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"http://{host}:{address[1]}"
        self._listener = listener
        self._path = state_dir / ADDRESS_FILE
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        self._server = _QuietServer(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve, and write the address where commands look for it."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="api")
        await asyncio.sleep(0)
        _write_private(self._path, json.dumps({"url": self.url, "pid": os.getpid()}) + "\n")

    async def stop(self) -> None:
        """Answer what was asked already, and close."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._listener.close()


class _QuietServer(uvicorn.Server):
    """Leaves the process's signals to whoever runs the loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _write_private(path: Path, text: str) -> None:
    """Write `path` whole, with mode 0600 from its first byte on."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
