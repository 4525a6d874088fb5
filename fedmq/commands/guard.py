"""`fedmq broker guard` cuts off who floods, `fedmq device release` lets it in again; `firewall` is for the kernel."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmq.commands.options import Log, config_option, log_options
from fedmq.commands.site_options import operator_settings, read_site
from fedmq.extras import needs
from fedmq.tables import FederationTable, MosquittoTable, broker_settings, read
from fedmq_protocol.access import GUARD, OPERATOR
from fedmq_protocol.errors import ConnectionFailedError
from fedmq_protocol.topics import Topics

if TYPE_CHECKING:
    from fedmq_broker.guarding.patrol import Patrol
    from fedmq_broker.site import Site
    from fedmq_protocol.broker_settings import BrokerSettings


@click.command()
@config_option
@log_options
def guard(config_path: Path | None, log: Log) -> None:
    """Watch over the federation's own Mosquitto until Ctrl-C, on the machine where it runs.

    Whoever floods it, or the coordinator, is cut off for ten minutes; each time that follows within a day is twice as
    long as the one before. `fedmq device release NAME` lets it in at once.
    """
    with needs("broker"):
        from fedmq_broker.guarding.patrol import Patrol
        from fedmq_broker.guarding.quarantine import Quarantine
        from fedmq_broker.guarding.watching import allowance

    configuration, site = read_site(config_path)
    table = configuration.table("mosquitto", MosquittoTable)
    patrol = Patrol(
        broker_settings(configuration, GUARD),
        Topics(configuration.table("federation", FederationTable).name),
        frozenset({table.port, table.websockets_port, table.password_port} - {0}),
        Quarantine(site.quarantine),
        allowance(table.parameters),
    )
    log.begin()
    asyncio.run(_run(patrol))


async def _run(patrol: Patrol) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await patrol.run(stop)


@click.command()
@config_option
@click.option(
    "--behind-one-address",
    "devices",
    type=click.IntRange(1, 1_000_000),
    help="So many devices may come from one address, such as a router's; default: all of them.",
)
def firewall(config_path: Path | None, devices: int | None) -> None:
    """Print rules for nftables that bound what one address may do to the broker; load them with nft -f."""
    with needs("broker"):
        from fedmq_broker.guarding.firewall import render

    table = read(config_path).table("mosquitto", MosquittoTable)
    ports = {table.port, table.websockets_port, table.password_port} - {0}
    click.echo(render(sorted(ports), devices or table.devices), nl=False)


@click.command()
@click.argument("name")
@config_option
def release(name: str, config_path: Path | None) -> None:
    """Let a device in again that was cut off because it flooded."""
    with needs("broker"):
        from fedmq_broker.dynsec_control import ControlError
        from fedmq_broker.guarding.quarantine import Quarantine

    configuration, site = read_site(config_path)
    live = operator_settings(configuration)
    quarantine = Quarantine(site.quarantine)
    quarantine.forgive(name)
    try:
        asyncio.run(_let_in(live, site, name))
    except (ConnectionFailedError, ControlError) as error:
        click.echo(
            f"{name} is released, but the broker could not be told ({error}): fedmq broker guard tells it when "
            "it reaches it, or say this again"
        )
        return
    quarantine.end(name, now=time.time())
    click.echo(f"{name} is let in again")


async def _let_in(live: BrokerSettings | None, site: Site, name: str) -> None:
    from fedmq_broker.dynsec_control import Control

    if live is None:
        raise ConnectionFailedError("it does not run")
    async with Control(live, lock=site.member(OPERATOR).folder / "lock") as control:
        if await control.client(name) is not None:  # else it was revoked meanwhile
            await control.let_in(name)
