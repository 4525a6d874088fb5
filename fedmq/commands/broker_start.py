"""`fedmq broker start`: the federation's own Mosquitto, or a broker for trying out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from fedmq.commands.options import config_option, log_format_option
from fedmq.extras import needs
from fedmq.logs import LogFormat, begin_logging
from fedmq.tables import read, site_of
from fedmq_protocol.errors import UsageError


@click.command()
@config_option
@click.option("--detach", is_flag=True, help="Return once it answers; fedmq broker stop ends it.")
@click.option("--host", help="Trying out: address to listen on, without password; default: 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Trying out: default 1883; 0 takes a free one.")
@click.option(
    "--kind",
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    help="Trying out: auto, the default, is Mosquitto where it is installed, else the embedded one.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Trying out: where it keeps its log and what it saves; else nothing stays.",
)
@log_format_option
def start(
    config_path: Path | None,
    detach: bool,  # noqa: FBT001 - click's signature
    host: str | None,
    port: int | None,
    kind: Literal["auto", "mosquitto", "embedded"] | None,
    state_dir: Path | None,
    log_format: LogFormat,
) -> None:
    """Run a broker until Ctrl-C.

    With a [mosquitto] table in the file, the federation's own Mosquitto as `fedmq broker init` has set it up. Without,
    one for trying out: no passwords, and on this machine alone.
    """
    configuration = read(config_path)
    echo = _echo(log_format)
    trying = {"--host": host, "--port": port, "--kind": kind, "--state-dir": state_dir}
    if configuration.gives("mosquitto"):
        given = [name for name, value in trying.items() if value is not None]
        if given:
            raise UsageError(
                f"{given[0]} is for trying out, and the file has a [mosquitto] table: change that one"
            )
        with needs("broker"):
            from fedmq_broker.service import run_in_foreground, start_detached

        site = site_of(configuration)
        if detach:
            echo(f"it runs as process {start_detached(site)}; its log is {site.mosquitto.log}")
        else:
            run_in_foreground(site, echo=echo)
        return
    if detach:
        raise UsageError("--detach needs a [mosquitto] table: a broker for trying out ends with its terminal")
    with needs("broker"):
        from fedmq_broker.runner import run_foreground

    run_foreground(
        kind or "auto",
        host=host or "127.0.0.1",
        port=1883 if port is None else port,
        state_dir=state_dir,
        echo=echo,
    )


def _echo(log_format: LogFormat) -> Callable[[str], None]:
    """Where this verb's own words go; Mosquitto's log is a file of its own."""
    if log_format == "line":
        return click.echo
    begin_logging(log_format)
    return logging.getLogger("fedmq_broker").info
