"""What the operator's verbs have in common: the site, and how `@operator` reaches the broker."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from fedmq.config import Configuration
from fedmq.tables import MosquittoTable, first_host, read, site_of
from fedmq_protocol.access import OPERATOR
from fedmq_protocol.errors import ConfigError

if TYPE_CHECKING:
    from fedmq_broker.membership import Applied
    from fedmq_broker.site import Site
    from fedmq_protocol.broker_settings import BrokerSettings

_LOOK_S: Final = 2.0


def site_with_members(configuration: Configuration) -> Site:
    """The site whose members are to be looked at or changed.

    Raises:
        ConfigError: the file tells of no Mosquitto of the federation's own.
    """
    if not configuration.gives("mosquitto"):
        where = configuration.path or "the settings"
        raise ConfigError(
            f"{where}: there is no [mosquitto] table, so no members are kept here: "
            "name the operator's file with --config"
        )
    return site_of(configuration)


def read_site(config_path: Path | None, **layers: object) -> tuple[Configuration, Site]:
    """The operator's file, and the site that it tells of; see `fedmq.tables.read` for `layers`."""
    configuration = read(config_path, **layers)  # type: ignore[arg-type]
    return configuration, site_with_members(configuration)


def operator_settings(configuration: Configuration) -> BrokerSettings | None:
    """How `@operator` reaches the broker from here, by its name or on this machine; None where nothing listens.

    Raises:
        ConfigError: `@operator` has no certificate.
    """
    from fedmq_protocol.broker_settings import BrokerSettings

    table, files = configuration.table("mosquitto", MosquittoTable), site_of(configuration).member(OPERATOR)
    if not files.certificate.exists():
        raise ConfigError(f"{OPERATOR} has no certificate in {files.folder}: fedmq broker init makes one")
    unsure: str | None = None
    for host in (first_host(configuration), table.listen or "127.0.0.1"):
        try:
            socket.create_connection((host, table.port), timeout=_LOOK_S).close()
        except (ConnectionRefusedError, socket.gaierror):
            continue
        except OSError:
            unsure = unsure or host
            continue
        return _settings(BrokerSettings, host, table.port, files.folder)
    return None if unsure is None else _settings(BrokerSettings, unsure, table.port, files.folder)


def _settings(model: type[BrokerSettings], host: str, port: int, folder: Path) -> BrokerSettings:
    return model(
        url=f"mqtts://[{host}]:{port}" if ":" in host else f"mqtts://{host}:{port}",
        ca_file=folder / "ca.pem",
        cert_file=folder / "cert.pem",
        key_file=folder / "key.pem",
    )


def tell(applied: Applied) -> None:
    """Say how far a change got."""
    match applied.how:
        case "live":
            click.echo("  the broker knows, from now on")
        case "stopped":
            click.echo("  the broker does not run: it knows from its next start on")
        case "later":
            click.echo(
                f"  the broker could not be told ({applied.note}); the next `fedmq device` command tries again, "
                "and its next start takes it"
            )
    if applied.how == "live" and applied.note:
        click.echo(f"  warning: {applied.note}", err=True)
