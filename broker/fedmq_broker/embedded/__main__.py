"""The embedded broker's process. It ends at SIGTERM or Ctrl-C, and when its parent does."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys

from fedmq_broker.embedded.server import Server
from fedmq_broker.probe import is_loopback

_log = logging.getLogger(__name__)
_PARENT_CHECK_S = 1.0


async def serve(host: str, port: int, parent_pid: int | None) -> None:
    """Serve until told to stop."""
    server = Server()
    await server.start(host, port)
    if not is_loopback(host):
        _log.warning(
            "%s is reachable from other machines, and there is no password: this is for trying out", host
        )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def check_parent() -> None:
        if os.getppid() != parent_pid:
            stop.set()
        else:
            loop.call_later(_PARENT_CHECK_S, check_parent)

    if parent_pid is not None:
        check_parent()
    await stop.wait()
    await server.stop()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m fedmq_broker.embedded", description="An MQTT 3.1.1 broker for trying out."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--parent-pid", type=int, help="end when this is no longer the parent")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(options.host, options.port, options.parent_pid))
    except OSError as error:
        sys.exit(f"cannot listen on {options.host}:{options.port}: {error}")


if __name__ == "__main__":
    main()
