"""`fedmq coordinator`: the process that holds the model and the rounds."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from fedmq.commands.options import (
    Log,
    broker_option,
    config_option,
    database_option,
    federation_option,
    log_options,
)
from fedmq.extras import needs
from fedmq.tables import CoordinatorTable, FederationTable, broker_settings, read

_log = logging.getLogger(__name__)


@click.group()
def coordinator() -> None:
    """Start the coordinator."""


@coordinator.command()
@config_option
@broker_option
@federation_option
@click.option("--state-dir", type=click.Path(path_type=Path), help="The journal, keys, the API's token.")
@database_option
@click.option(
    "--take-over",
    is_flag=True,
    help="End the hold of a coordinator elsewhere that hangs, or cannot be reached.",
)
@click.option("--listen", metavar="HOST:PORT", help="Where the HTTP API listens; port 0 takes a free one.")
@log_options
def start(
    config_path: Path | None,
    broker_url: str | None,
    federation: str | None,
    state_dir: Path | None,
    database: str | None,
    take_over: bool,  # noqa: FBT001 - click's signature
    listen: str | None,
    log: Log,
) -> None:
    """Run the coordinator until Ctrl-C; after a stop or a crash it goes on where it was."""
    with needs("coordinator"):
        from fedmq.model_host import TrainerModelHost
        from fedmq_coordinator.core.settings import RunSettings
        from fedmq_coordinator.shell.main import run_coordinator_forever
        from fedmq_coordinator.shell.settings import CoordinatorSettings
        from fedmq_edge_agent.shell.settings import TrainerSettings

    configuration = read(
        config_path,
        flags={
            "broker.url": ("--broker", broker_url),
            "federation.name": ("--federation", federation),
            "coordinator.state_dir": ("--state-dir", state_dir),
            "coordinator.database": ("--database", database),
            "coordinator.listen": ("--listen", listen),
        },
    )
    table = configuration.table("coordinator", CoordinatorTable)
    trainer = configuration.table("trainer", TrainerSettings)
    settings = configuration.checked(
        CoordinatorSettings,
        {
            "federation": configuration.table("federation", FederationTable).name,
            "broker": broker_settings(configuration),
            "run": configuration.table("run", RunSettings),
            "state_dir": table.state_dir,
            "database": table.database_settings(),
            "listen": table.listen,
            "key_file": table.key_file,
            "updates_under_way": table.updates_under_way,
            "retention": {
                "versions_days": table.keep_versions_days,
                "updates_days": table.keep_updates_days,
            },
        },
        table="coordinator",
    )
    log.begin()
    _log.info("starting the coordinator of %s", settings.federation)  # what came before were imports
    host = TrainerModelHost(nursery=trainer.nursery, threads=trainer.threads, data=table.data)
    asyncio.run(run_coordinator_forever(settings, model_host=host, take_over=take_over))
