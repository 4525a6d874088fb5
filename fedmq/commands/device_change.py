"""`fedmq device renew|rename|revoke`: what becomes of devices that are in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from fedmq.commands.options import config_option, json_option
from fedmq.commands.site_options import operator_settings, read_site, tell
from fedmq.device_settings import device_toml, renamed
from fedmq.extras import needs
from fedmq_protocol.errors import UsageError

csr_option = click.option(
    "--csr",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A certificate signing request, where the device made a new key.",
)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@config_option
@csr_option
@click.option(
    "--due", is_flag=True, help="All devices whose certificate has less than a third of its life left."
)
@click.option(
    "--revoke-old",
    is_flag=True,
    help="Take the older certificates away at once: the device is cut off until it has the new one.",
)
@json_option
def renew(
    names: tuple[str, ...],
    config_path: Path | None,
    csr: Path | None,
    due: bool,  # noqa: FBT001 - click's signature
    revoke_old: bool,  # noqa: FBT001 - click's signature
    as_json: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Issue devices new certificates, or new passwords.

    The old certificate holds until it expires, an old password no more. Flashing again puts the new one on a device.
    """
    with needs("broker"):
        from fedmq_broker import membership
        from fedmq_broker.authority import Authority

    configuration, site = read_site(config_path)
    authority = Authority.open(site.authority.folder)
    wanted = list(names)
    if due:
        wanted += [
            member.name
            for member in authority.members().values()
            if member.active
            and member.role == "device"
            and member.current
            and authority.is_due(member.current)
        ]
    if not wanted and not due:
        raise UsageError("name the devices, or take all that are --due")
    if csr is not None and len(wanted) != 1:
        raise UsageError("--csr is the request of one device: name that one")
    live = operator_settings(configuration)
    told = []
    for name in dict.fromkeys(wanted):
        made, applied = asyncio.run(
            membership.renew(
                site, name, live=live, csr=csr.read_bytes() if csr else None, revoke_old=revoke_old
            )
        )
        until = None if made.member.not_after is None else made.member.not_after.isoformat()
        told.append({"name": name, "not_after": until, "broker": applied.how, "note": applied.note})
        if as_json:
            continue
        if made.password is not None:
            click.echo(f"{name} has a new password, shown this once and kept in its folder: {made.password}")
        else:
            click.echo(
                f"{name} has a new certificate, until {made.member.not_after:%Y-%m-%d}, in {site.member(name).folder}"
            )
        tell(applied)
        if made.member.role == "device":
            click.echo(f"  {name} has it once it is flashed again: fedmq device flash {name}")
    if as_json:
        click.echo(json.dumps(told, indent=2))
    elif not wanted:
        click.echo("no device's certificate is due")


@click.command()
@click.argument("old")
@click.argument("new")
@config_option
@csr_option
def rename(old: str, new: str, config_path: Path | None, csr: Path | None) -> None:
    """Give a device another name: NEW is enrolled, OLD revoked and cut off, in one stroke."""
    with needs("broker"):
        from fedmq_broker import membership

    configuration, site = read_site(config_path)

    def settings(name: str) -> str:
        try:
            return renamed(site.member(old).settings.read_text(encoding="utf-8"), name)
        except FileNotFoundError:
            return device_toml(configuration, name, password=site.member(old).password.exists())

    made, applied = asyncio.run(
        membership.rename(
            site,
            old,
            new,
            live=operator_settings(configuration),
            csr=csr.read_bytes() if csr else None,
            settings=settings,
        )
    )
    click.echo(f"{old} is called {made.member.name} from now on: {site.member(new).folder}")
    if made.password is not None:
        click.echo(f"  its new password, shown this once and kept in its folder: {made.password}")
    tell(applied)
    click.echo(
        f"  {old} is revoked. To the coordinator {new} is a new device: give it an empty state folder, since what "
        f"{old} has not delivered counts for nobody"
    )


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@config_option
@json_option
def revoke(names: tuple[str, ...], config_path: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Throw devices out: they are cut off at once, and refused from then on.

    A name may be enrolled anew, with a new key.
    """
    with needs("broker"):
        from fedmq_broker import membership

    configuration, site = read_site(config_path)
    applied = asyncio.run(membership.revoke(site, names, live=operator_settings(configuration)))
    if as_json:
        click.echo(
            json.dumps({"revoked": list(names), "broker": applied.how, "note": applied.note}, indent=2)
        )
        return
    click.echo(f"{', '.join(names)}: revoked")
    tell(applied)
