"""`fedmq broker start`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from fedmq.extras import needs


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; there is no password."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=1883, show_default=True, help="0 takes a free one."
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    default="auto",
    show_default=True,
    help="auto: Mosquitto where it is installed, else the embedded one.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Where it keeps its log and what it saves; else nothing stays.",
)
def start(
    host: str, port: int, kind: Literal["auto", "mosquitto", "embedded"], state_dir: Path | None
) -> None:
    """Run a broker until Ctrl-C. Production uses a Mosquitto of its own."""
    with needs("broker"):
        from fedmq_broker.runner import run_foreground

    run_foreground(kind, host=host, port=port, state_dir=state_dir, echo=click.echo)
