"""`fedmq broker check`: what is wrong with a mosquitto.conf, line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmq.commands.options import config_option, json_option
from fedmq.extras import needs
from fedmq.tables import MosquittoTable, packet_bytes, read
from fedmq_protocol.errors import UsageError

if TYPE_CHECKING:
    from fedmq_broker.checking import Finding

_EXIT_ERRORS = 1


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@click.option("--devices", type=click.IntRange(1), help="How many it is to serve; else as [mosquitto] says.")
@click.option("--parameters", type=click.IntRange(1), help="Of the largest model; else as [mosquitto] says.")
@click.option(
    "--for",
    "version",
    metavar="VERSION",
    help="The Mosquitto that will read it, such as 2.1.2; else the one that is installed here.",
)
@click.option("--no-machine", is_flag=True, help="Leave out the limits of this machine.")
@json_option
def check(
    file: Path,
    config_path: Path | None,
    devices: int | None,
    parameters: int | None,
    version: str | None,
    no_machine: bool,  # noqa: FBT001 - click's signature
    as_json: bool,  # noqa: FBT001 - click's signature
) -> int:
    """Say what in FILE, any mosquitto.conf, would lose messages, refuse chunks or let strangers in.

    Each finding has its line and its mend. The exit code is 1 where there is an error, 0 with warnings alone.
    """
    with needs("broker"):
        from fedmq_broker.checking import check as check_file
        from fedmq_broker.checking.machine import this_machine
        from fedmq_broker.checking.options import NEWEST, version_text
        from fedmq_broker.mosquitto import find_mosquitto, mosquitto_version
        from fedmq_broker.sizing import plan

    configuration = read(
        config_path,
        flags={
            "mosquitto.devices": ("--devices", devices),
            "mosquitto.parameters": ("--parameters", parameters),
        },
    )
    table = configuration.table("mosquitto", MosquittoTable)
    if not file.exists():
        raise UsageError(f"there is no file {str(file)!r}")
    program = find_mosquitto() if version is None else None
    wanted = _version(version) if version else (mosquitto_version(program) if program else ()) or NEWEST
    limits = plan(table.devices, table.parameters, packet_bytes(configuration), listeners=1)
    found = check_file(
        file,
        devices=table.devices,
        limits=limits,
        version=wanted,
        machine=None if no_machine else this_machine(),
    )
    if as_json:
        click.echo(json.dumps([_plain(one) for one in found], indent=2))
    else:
        for one in found:
            click.echo(_shown(one))
        click.echo(_summary(file, found, table, version_text(wanted)))
    return _EXIT_ERRORS if any(one.severity == "error" for one in found) else 0


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        raise UsageError(f"--for {text!r} is no version; write for example --for 2.1.2") from None


def _shown(one: Finding) -> str:
    where = f"{one.line.path}:{one.line.number}: " if one.line else ""
    said = f"    {one.line.name} {one.line.value}\n" if one.line else ""
    return f"{one.severity}: {where}{one.what}\n{said}    mend: {one.mend}\n"


def _summary(file: Path, found: list[Finding], table: MosquittoTable, version: str) -> str:
    fleet = f"for {table.devices:,} devices and {table.parameters:,} parameters, read by Mosquitto {version}"
    if not found:
        return f"{file} is sound {fleet}"
    errors = sum(one.severity == "error" for one in found)
    return f"{errors} errors, {len(found) - errors} warnings {fleet}"


def _plain(one: Finding) -> dict[str, Any]:
    return {
        "severity": one.severity,
        "rule": one.rule,
        "file": str(one.line.path) if one.line else None,
        "line": one.line.number if one.line else None,
        "setting": f"{one.line.name} {one.line.value}" if one.line else None,
        "what": one.what,
        "mend": one.mend,
    }
