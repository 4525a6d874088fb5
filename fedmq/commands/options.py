"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

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
