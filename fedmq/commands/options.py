"""Options that several verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fedmq.logs import LOG_FORMATS, LogFormat, begin_logging

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="A TOML file with the settings; `fedmq config show` lists them all.",
)
broker_option = click.option(
    "--broker",
    "broker_url",
    metavar="URL",
    help="The broker, for example mqtt://host:1883 or mqtts://user@host.",
)
federation_option = click.option("--federation", metavar="NAME", help="The federation's name.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
state_dir_option = click.option(
    "--state-dir", type=click.Path(path_type=Path), help="The coordinator's folder, where its API is found."
)
database_option = click.option(
    "--database",
    metavar="URL",
    help="postgresql://user@host/database for the journal, in place of SQLite in the state folder.",
)


log_format_option = click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default="line",
    show_default=True,
    envvar="FEDMQ_LOG_FORMAT",
    help="line: for people. json: an object a line, with device, run and round as fields.",
)


@dataclass(frozen=True)
class Log:
    """How a long-running verb was asked to log."""

    log_format: LogFormat
    verbose: bool

    def begin(self, **always: str) -> None:
        """Log so from now on; `always` are fields of every record."""
        begin_logging(self.log_format, verbose=self.verbose, always=always)


def log_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """`--log-format` and `--verbose`, which reach the verb as one argument, `log`."""

    @log_format_option
    @click.option("--verbose", is_flag=True, help="Log everything.")
    @functools.wraps(verb)
    def with_log(*args: object, log_format: LogFormat, verbose: bool, **options: object) -> object:
        return verb(*args, log=Log(log_format, verbose), **options)

    return with_log


def printable(text: str) -> str:
    """One line of it: whatever a task, a device or a broker says must not move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in text)
