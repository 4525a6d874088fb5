"""`fedmq broker exporter`: broker and federation as Prometheus metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from fedmq.commands.options import (
    Log,
    broker_option,
    config_option,
    federation_option,
    log_options,
    state_dir_option,
)
from fedmq.extras import needs
from fedmq_protocol.errors import UsageError

if TYPE_CHECKING:
    from fedmq.watching import Watched

_log = logging.getLogger(__name__)

DEFAULT_LISTEN: Final = "127.0.0.1:9234"
_MAX_PORT: Final = 65_535


@click.command()
@config_option
@broker_option
@federation_option
@state_dir_option
@click.option(
    "--listen", default=DEFAULT_LISTEN, show_default=True, metavar="HOST:PORT", help="Port 0: any free one."
)
@click.option(
    "--mosquitto-conf",
    type=click.Path(path_type=Path),
    help="The configuration that the broker runs, for its limits; default: the site's.",
)
@click.option(
    "--devices",
    "cap",
    type=click.IntRange(0, 100_000),
    default=200,
    show_default=True,
    help="So many devices have metrics of their own, the silent and the troubled first.",
)
@log_options
def exporter(
    config_path: Path | None,
    broker_url: str | None,
    federation: str | None,
    state_dir: Path | None,
    mosquitto_conf: Path | None,
    listen: str,
    cap: int,
    log: Log,
) -> None:
    """Serve /metrics for Prometheus until Ctrl-C."""
    with needs("broker"):
        from fedmq.watching import watched_by

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _MAX_PORT:
        raise UsageError(f"--listen {listen!r} must be host:port, for example {DEFAULT_LISTEN}")
    watched = watched_by(config_path, broker_url, federation, state_dir, mosquitto_conf)
    log.begin()
    asyncio.run(_export(watched, host.strip("[]"), int(port), cap))


async def _export(watched: Watched, host: str, port: int, cap: int) -> None:
    from fedmq.watching import Watching, exporter_file
    from fedmq_broker.watching.http import Pages

    watching = Watching(watched)
    pages = Pages(watching.picture, cap=cap)
    try:
        url = await pages.start(host, port)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    _log.info("metrics at %s/metrics", url)
    place = exporter_file(watched)
    watch = asyncio.create_task(watching.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, watch.cancel)
    try:
        _be_found(place, url)
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    finally:
        if place is not None and url in _told(place):  # and not another exporter's by now
            place.unlink(missing_ok=True)
        await pages.stop()
    _log.info("stopped")


def _be_found(place: Path | None, url: str) -> None:
    """Say for the monitor where we listen."""
    if place is None:
        return
    try:
        place.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n", encoding="ascii")
    except OSError as error:
        _log.warning(
            "`fedmq broker monitor` will not find this exporter, and each will push the other out of the broker: "
            "cannot write %s: %s",
            place,
            error.strerror,
        )


def _told(place: Path) -> str:
    try:
        return place.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
