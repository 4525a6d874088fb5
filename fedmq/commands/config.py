"""`fedmq config`: what holds, and where it came from."""

from __future__ import annotations

from pathlib import Path

import click

from fedmq.commands.options import config_option
from fedmq.config import Configuration, Origin, Shown, shown
from fedmq.tables import broker_settings, models, read
from fedmq_protocol.errors import ConfigError


@click.group()
def config() -> None:
    """Show what holds, and where it came from.

    One TOML file (--config), overridden by variables, overridden by flags. A variable names a setting by its path with
    two underscores for each dot: FEDMQ_BROKER__URL is `url` of [broker], FEDMQ_RUN__TRAIN__LR is `lr` of [run.train].
    """


@config.command()
@config_option
def show(config_path: Path | None) -> None:
    """Print each setting, its value and its origin: default, the file, or a variable. Secrets are masked."""
    configuration = read(config_path)
    lines = [_as_it_holds(configuration, line) for line in configuration.show(models())]
    names = [line.key.partition(".")[2] for line in lines]
    wide = max(len(name) + 3 + min(len(line.value), 40) for name, line in zip(names, lines, strict=True))
    table = ""
    for name, line in zip(names, lines, strict=True):
        if line.key.partition(".")[0] != table:
            table = line.key.partition(".")[0]
            click.echo(f"[{table}]")
        assignment = f"{name} = {line.value}"
        click.echo(f"{assignment:<{wide}}  # {line.origin}")


def _as_it_holds(configuration: Configuration, line: Shown) -> Shown:
    """Where [mosquitto] stands in for [broker], what the coordinator comes in by."""
    table, _, name = line.key.partition(".")
    if table != "broker" or line.origin.kind != "default":
        return line
    try:
        value = shown(getattr(broker_settings(configuration), name))
    except ConfigError:  # it was never set up: then nothing else holds
        return line
    if value == line.value:
        return line
    return Shown(line.key, value, Origin("default", "by [mosquitto]"))
