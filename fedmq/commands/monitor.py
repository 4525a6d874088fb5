"""`fedmq broker monitor`: broker and federation on one screen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from fedmq.commands.options import (
    broker_option,
    config_option,
    federation_option,
    json_option,
    state_dir_option,
)
from fedmq.extras import needs

if TYPE_CHECKING:
    from rich.console import Console

    from fedmq.watching import Watched
    from fedmq_broker.watching.picture import Picture

_EVERY_S: Final = 1.0
_FIRST_S: Final = 5.0
_ONLY_S: Final = 20.0
"""The only picture is worth a longer wait."""


@click.command()
@config_option
@broker_option
@federation_option
@state_dir_option
@click.option(
    "--mosquitto-conf",
    type=click.Path(path_type=Path),
    help="The configuration that the broker runs, for its limits; default: the site's.",
)
@click.option(
    "--once", is_flag=True, help="Show one picture, and end; exit code 1 where broker or coordinator is away."
)
@json_option
def monitor(
    config_path: Path | None,
    broker_url: str | None,
    federation: str | None,
    state_dir: Path | None,
    mosquitto_conf: Path | None,
    once: bool,  # noqa: FBT001 - click's signature
    as_json: bool,  # noqa: FBT001 - click's signature
) -> int:
    """Watch broker and federation until Ctrl-C."""
    with needs("broker"):
        from rich.console import Console

        from fedmq.watching import watched_by

    watched = watched_by(config_path, broker_url, federation, state_dir, mosquitto_conf)
    logging.getLogger().addHandler(
        logging.NullHandler()
    )  # the picture says all, and a line would spoil the screen
    if once:
        picture, note = asyncio.run(_first(watched))
        if as_json:
            click.echo(picture.model_dump_json(indent=2))
        else:
            from fedmq_broker.watching.view import draw

            Console().print(draw(picture, note=note))
        return 0 if picture.broker.up and picture.coordinator.up else 1
    if as_json:
        return asyncio.run(_until_told(watched, _print_json))
    console = Console()
    if not console.is_terminal:
        return asyncio.run(_until_told(watched, _printer(console)))
    return asyncio.run(_on_screen(watched, console))


def _print_json(picture: Picture, _note: str) -> None:
    """An object a line."""
    click.echo(picture.model_dump_json())


def _printer(console: Console) -> Callable[[Picture, str], None]:
    """Where there is no terminal, one picture below the other."""
    from fedmq_broker.watching.view import draw

    def show(picture: Picture, note: str) -> None:
        console.print(draw(picture, note=note))
        console.print()

    return show


async def _first(watched: Watched) -> tuple[Picture, str]:
    from fedmq.looking import pictures

    async with contextlib.aclosing(pictures(watched, every_s=_EVERY_S, settle_s=_ONLY_S)) as looks:
        async for picture, note in looks:
            return picture, note
    raise AssertionError("pictures never end")


async def _on_screen(watched: Watched, console: Console) -> int:
    from rich.live import Live

    from fedmq_broker.watching.view import draw

    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:

        def show(picture: Picture, note: str) -> None:
            live.update(draw(picture, height=console.height, note=note), refresh=True)

        return await _until_told(watched, show)


async def _until_told(watched: Watched, show: Callable[[Picture, str], None]) -> int:
    from fedmq.looking import pictures

    async def look() -> None:
        async with contextlib.aclosing(pictures(watched, every_s=_EVERY_S, settle_s=_FIRST_S)) as looks:
            async for picture, note in looks:
                show(picture, note)

    looking = asyncio.create_task(look())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, looking.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    return 0
