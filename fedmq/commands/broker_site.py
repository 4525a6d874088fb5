"""`fedmq broker init|stop|status|reload`: the federation's own Mosquitto, from the [mosquitto] table."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fedmq.commands.options import json_option
from fedmq.commands.site_options import operator_settings
from fedmq.extras import needs
from fedmq.tables import (
    FederationTable,
    MosquittoTable,
    broker_settings,
    first_host,
    packet_bytes,
    read,
    site_of,
)
from fedmq_protocol.access import OPERATOR
from fedmq_protocol.errors import UsageError
from fedmq_protocol.topics import check_id

if TYPE_CHECKING:
    from fedmq.config import Configuration
    from fedmq_broker.preparing import Plan, Prepared
    from fedmq_broker.site import Site
    from fedmq_broker.standing import Standing
    from fedmq_protocol.broker_settings import BrokerSettings

EXIT_TROUBLE: Final = 1
EXIT_NOT_RUNNING: Final = 3
"""As `systemctl status` has it."""

site_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    required=True,
    help="The TOML file with the [mosquitto] table.",
)


def plan_of(configuration: Configuration) -> Plan:
    """What the configuration asks of a Mosquitto."""
    with needs("broker"):
        from fedmq_broker.preparing import Plan
        from fedmq_broker.sizing import plan

    table = configuration.table("mosquitto", MosquittoTable)
    first_host(configuration)  # says what is missing
    ports = (table.port, table.websockets_port, table.password_port)
    return Plan(
        federation=check_id(configuration.table("federation", FederationTable).name, what="federation"),
        hosts=table.hosts,
        limits=plan(
            table.devices,
            table.parameters,
            packet_bytes(configuration),
            listeners=sum(port > 0 for port in ports),
        ),
        port=table.port,
        websockets_port=table.websockets_port,
        password_port=table.password_port,
        listen=table.listen,
        version=tuple(int(part) for part in table.version.split(".")) if table.version else (),
    )


def as_operator(configuration: Configuration) -> BrokerSettings:
    """How `@operator` reaches the broker, or would where it does not run."""
    return operator_settings(configuration) or broker_settings(configuration, OPERATOR)


@click.command()
@site_option
def init(config_path: Path) -> None:
    """Set up the federation's own Mosquitto; do it again after each change of the file.

    Authority, certificates, rights, configuration and a systemd unit are made in the site's folder. Keys that are there
    stay. A broker that runs is told at once, and cuts nobody off.
    """
    configuration = read(config_path)
    site = site_of(configuration)
    prepared, notes = _prepare(configuration, renew=False)
    for line in prepared.made or ("nothing to do: all is there, and as the file says",):
        click.echo(line)
    _tell(notes)
    if not site.mosquitto.pid.exists():
        click.echo(f"\nrun it with        fedmq broker start --config {config_path}")
        click.echo(f"or by systemd:     systemctl enable --now {site.mosquitto.unit.absolute()}")
        click.echo(f"let devices in:    fedmq device enroll NAME --config {config_path}")


@click.command()
@site_option
def renew(config_path: Path) -> None:
    """Make new certificates and keys of the broker and of the roles, due or not; nobody is cut off.

    `init` does so for what is due. A coordinator or an exporter takes its own at its next connection.
    """
    prepared, notes = _prepare(read(config_path), renew=True)
    for line in prepared.made:
        click.echo(line)
    _tell(notes)


@click.command()
@site_option
def reload(config_path: Path) -> None:
    """Bring a running broker what has changed in the file, its certificates and its members; nobody is cut off."""
    from fedmq_broker.running import pid_or_closed

    configuration = read(config_path)
    if pid_or_closed(site_of(configuration)) is None:
        raise UsageError(
            "it does not run on this machine: fedmq broker start starts it; in a container, "
            "fedmq broker init and then docker compose kill -s HUP broker"
        )
    prepared, notes = _prepare(configuration, renew=False)
    for line in prepared.made:
        click.echo(line)
    _tell(notes)
    click.echo("it has read its files again")


@click.command()
@site_option
def stop(config_path: Path) -> None:
    """End the federation's own Mosquitto, if it runs on this machine."""
    from fedmq_broker.service import stop as stop_site

    configuration = read(config_path)
    plan_of(configuration)  # a file without [mosquitto] names no broker to end
    if stop_site(site_of(configuration)):
        click.echo("stopped")
    else:
        click.echo("it does not run on this machine")


@click.command()
@site_option
@json_option
def status(config_path: Path, as_json: bool) -> int:  # noqa: FBT001 - click's signature
    """Say how the federation's own Mosquitto stands.

    The exit code is 0 where all is well, 1 where something wants looking after, 3 where it cannot be reached.
    """
    configuration = read(config_path)
    from fedmq_broker.standing import look

    plan = plan_of(configuration)
    site = site_of(configuration)
    standing = asyncio.run(look(site, as_operator(configuration), resident_limit=plan.limits.resident_bytes))
    if as_json:
        click.echo(json.dumps(_plain(standing), indent=2))
    else:
        for name, text in _described(standing, site):
            click.echo(f"{name:<14} {text}")
    if not standing.answers:
        return EXIT_NOT_RUNNING
    return EXIT_TROUBLE if standing.troubles else 0


def _prepare(configuration: Configuration, *, renew: bool) -> tuple[Prepared, list[str]]:
    """Prepare the site, and bring a running broker what changed; what else the operator should know."""
    plan = plan_of(configuration)
    from fedmq_broker import membership
    from fedmq_broker.preparing import is_serving, prepare
    from fedmq_broker.running import running_pid

    site = site_of(configuration)
    here = running_pid(site) is not None
    running = here or (site.mosquitto.dynamic_security.exists() and is_serving(plan))
    prepared = prepare(site, plan, running=running, renew=renew)
    notes = []
    if running:
        applied = asyncio.run(membership.settle(site, live=as_operator(configuration)))
        if applied.note:
            notes.append(applied.note)
        if here:
            membership.signal_reload(site)
        elif prepared.made:
            notes.append(
                "something else serves its port, a container perhaps: have it read its files again with SIGHUP"
            )
        if prepared.at_start:
            notes.append(f"from its next start only: {', '.join(prepared.at_start)}")
    return prepared, notes


def _tell(notes: list[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}")


def _described(standing: Standing, site: Site) -> list[tuple[str, str]]:
    from fedmq.report.sizes import bytes_text

    where = f"process {standing.pid}" if standing.pid else "not on this machine, or in a container"
    lines = [("broker", where if standing.answers or standing.pid else "does not run")]
    if standing.answers:
        said = standing.counters
        lines += [
            ("version", said["version"].removeprefix("mosquitto version ")),
            ("up", said["uptime"]),
            ("connected", f"{said['clients/connected']}, at most {said.get('clients/maximum', '?')} so far"),
            ("messages", _messages(standing)),
        ]
    else:
        lines.append(("asked", standing.why_not))
    if standing.resident_bytes is not None:
        lines.append(("memory", bytes_text(standing.resident_bytes)))
    lines += [("expires", f"{end:%Y-%m-%d}, {name}") for name, end in standing.expires.items()]
    lines.append(("log", str(site.mosquitto.log)))
    lines += [("trouble", text) for text in standing.troubles]
    return lines


def _messages(standing: Standing) -> str:
    from fedmq.report.sizes import bytes_text

    said = standing.counters
    stored = bytes_text(standing.number("store/messages/bytes") or 0)
    retained = said.get("retained messages/count", "?")
    return f"{retained} retained, {stored} stored, {said['publish/messages/dropped']} dropped"


def _plain(standing: Standing) -> dict[str, Any]:
    return {
        "answers": standing.answers,
        "why_not": standing.why_not or None,
        "pid": standing.pid,
        "resident_bytes": standing.resident_bytes,
        "counters": dict(standing.counters),
        "expires": {name: end.isoformat() for name, end in standing.expires.items()},
        "troubles": list(standing.troubles),
    }
