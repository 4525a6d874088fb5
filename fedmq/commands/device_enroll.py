"""`fedmq device enroll`: identities for new devices."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmq.commands.options import config_option, json_option
from fedmq.commands.site_options import operator_settings, read_site, tell
from fedmq.device_settings import coordinator_key, device_toml
from fedmq.extras import needs
from fedmq.tables import parse_sets, read
from fedmq_protocol.errors import UsageError
from fedmq_protocol.topics import check_id

if TYPE_CHECKING:
    from fedmq_broker.authority import Credentials
    from fedmq_broker.site import Site

_SHOWN = 5
_INDEX = "{index}"
_MANY = 10
_BAR = 30


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@config_option
@click.option("--count", type=click.IntRange(1, 100_000), help="So many, named by --prefix and a number.")
@click.option("--prefix", default="dev-", show_default=True, help="What the names of --count begin with.")
@click.option(
    "--csr",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A certificate signing request: the device made its own key, which never leaves it.",
)
@click.option("--password", is_flag=True, help="By password, for a board that cannot do certificates.")
@click.option("--task", help="The task that it trains: a Python file, or an installed module.")
@click.option(
    "--data",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help=f"For the task's loader: --data partition_id={_INDEX}, where {_INDEX} counts the devices from 0.",
)
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True),
    default=730.0,
    show_default=True,
    help="So long certificates hold.",
)
@json_option
def enroll(  # noqa: PLR0913, PLR0917 - one argument an option
    names: tuple[str, ...],
    config_path: Path | None,
    count: int | None,
    prefix: str,
    csr: Path | None,
    password: bool,  # noqa: FBT001 - click's signature
    task: str | None,
    pairs: tuple[str, ...],
    days: float,
    as_json: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Let devices in: a key, a certificate, access to their own topics, and settings for each.

    Takes effect at once, without a restart of the broker.
    """
    with needs("broker"):
        from fedmq_broker import membership
        from fedmq_broker.authority import Authority

    flags = {"device.task": ("--task", task)}
    configuration, site = read_site(config_path, flags=flags)
    wanted = [*names, *_numbered(prefix, count, site)]
    if not wanted:
        raise UsageError("name the devices, or say how many with --count")
    if csr is not None and len(wanted) != 1:
        raise UsageError("--csr is the request of one device: name that one")
    if csr is not None and password:
        raise UsageError("--csr and --password: a device comes in by one of them")

    def settings(name: str) -> str:
        index = str(wanted.index(name)) if any(_INDEX in pair for pair in pairs) else ""
        sets = parse_sets(tuple(pair.replace(_INDEX, index) for pair in pairs), table="device.data")
        own = read(config_path, flags=flags, sets=sets)
        return device_toml(own, name, password=password)

    for name in wanted:
        check_id(name, what="device")
    before = Authority.open(site.authority.folder).members()
    made, applied = asyncio.run(
        membership.enrol(
            site,
            wanted,
            live=operator_settings(configuration),
            csr=None if csr is None else _read_request(csr),
            password=password,
            days=days,
            settings=settings,
            progress=None if as_json else _progress(len(wanted)),
        )
    )
    if as_json:
        devices = [_plain(site, each) for each in made]
        click.echo(json.dumps({"devices": devices, "broker": applied.how, "note": applied.note}, indent=2))
        return
    for each in made[:_SHOWN]:
        _tell_one(site, each)
    if len(made) > _SHOWN:
        click.echo(f"... and {len(made) - _SHOWN} more, {len(made)} in all, in {site.members}")
    tell(applied)
    if again := [name for name in wanted if name in before]:
        click.echo(
            f"  {', '.join(again[:_SHOWN])}: enrolled before. The coordinator knows a device by the key in its state "
            "folder, and refuses another: where that folder is gone, take a new name"
        )
    if task is not None and task.endswith(".py") and not Path(task).is_file():
        click.echo(f"  there is no task file {task} here; flashing will ask for it")
    if coordinator_key(configuration) is None:
        click.echo(
            "  the coordinator was never started here: devices will believe the first that they see, not this one alone"
        )
    where = "" if config_path is None else f" --config {config_path}"
    click.echo(f"  next: fedmq device flash {wanted[0]}{where} --target ssh:user@host puts it on a board,")
    click.echo(f"        fedmq agent start --config {site.member(wanted[0]).settings} tries it out here")


def _progress(total: int) -> Callable[[int, int], None] | None:
    """A bar on a terminal, where a running broker is to hear of many."""
    if total < _MANY or not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        width = _BAR * done // total
        end = "\r" if done < total else "\n"
        click.echo(f"  telling the broker [{'#' * width:<{_BAR}}] {done} of {total}{end}", nl=False, err=True)

    return show


def _numbered(prefix: str, count: int | None, site: Site) -> list[str]:
    """The next `count` names that nobody has had."""
    if count is None:
        return []
    from fedmq_broker.authority import Authority

    known = Authority.open(site.authority.folder).members()
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        if (name := f"{prefix}{number}") not in known:
            names.append(name)
    return names


def _read_request(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _tell_one(site: Site, made: Credentials) -> None:
    member = made.member
    folder = site.member(member.name).folder
    if made.password is not None:
        click.echo(f"{member.name} is enrolled, by password: {folder}")
        click.echo(f"  password, shown this once and kept in {folder}/password: {made.password}")
        return
    until = f"until {member.not_after:%Y-%m-%d}" if member.not_after else ""
    key = "its key stays on the device" if made.key is None else "key"
    click.echo(f"{member.name} is enrolled: certificate ({until}), {key} and settings in {folder}")


def _plain(site: Site, made: Credentials) -> dict[str, Any]:
    member = made.member
    files = site.member(member.name)
    return {
        "name": member.name,
        "how": member.how,
        "folder": str(files.folder),
        "settings": str(files.settings),
        "serial": None if member.serial is None else f"{member.serial:x}",
        "not_after": None if member.not_after is None else member.not_after.isoformat(),
        "password_file": None if made.password is None else str(files.password),
    }
