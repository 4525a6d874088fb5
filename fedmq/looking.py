"""One picture after another, from the broker itself, or from an exporter that watches it already."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from typing import Final

from pydantic import ValidationError

from fedmq.watching import Watched, Watching, exporter_file
from fedmq_broker.watching.http import PICTURE
from fedmq_broker.watching.picture import Picture

_TIMEOUT_S: Final = 5.0
_MAX_PICTURE_BYTES: Final = 64 * 2**20


async def pictures(
    watched: Watched, *, every_s: float, settle_s: float
) -> AsyncGenerator[tuple[Picture, str], None]:
    """A picture now and then, for ever, and where it comes from if not from the broker itself.

    Args:
        watched: what to look at.
        every_s: between two pictures.
        settle_s: how long the first may take.
    """
    while True:
        url = exporter_of(watched)
        while url is not None and (picture := await asyncio.to_thread(ask_exporter, url)) is not None:
            yield picture, f"as the exporter at {url} sees it"
            await asyncio.sleep(every_s)
        watching = Watching(watched, ask_every_s=every_s)
        task = asyncio.create_task(watching.run())
        try:
            await watching.settled(settle_s)
            while exporter_of(watched) in {None, url} and not task.done():
                yield watching.picture(), ""
                await asyncio.sleep(every_s)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def exporter_of(watched: Watched) -> str | None:
    """Where an exporter of this site listens; None where none runs."""
    place = exporter_file(watched)
    if place is None:
        return None
    try:
        told = json.loads(place.read_text(encoding="ascii"))
        os.kill(told["pid"], 0)
        url = told["url"]
    except PermissionError:  # it runs as another user
        return str(told["url"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return str(url)


def ask_exporter(url: str) -> Picture | None:
    """Its picture; None where it does not answer with one."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    try:
        with opener.open(url + PICTURE, timeout=_TIMEOUT_S) as answer:
            return Picture.model_validate_json(answer.read(_MAX_PICTURE_BYTES))
    except (OSError, ValueError, ValidationError, urllib.error.URLError):
        return None
