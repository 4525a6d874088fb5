"""`fedmq device ls|show`: who is in, whose certificate expires, and when each was heard of last."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fedmq.commands.options import config_option, json_option, printable
from fedmq.commands.site_options import read_site
from fedmq.extras import needs
from fedmq.tables import CoordinatorTable
from fedmq_protocol.errors import FedmqError, UsageError

if TYPE_CHECKING:
    from fedmq.config import Configuration
    from fedmq_broker.authority import Authority, Member
    from fedmq_broker.site import Site
    from fedmq_coordinator.core.views import DeviceView

_MINUTE_S: Final = 60
_HOUR_S: Final = 3_600
_DAY_S: Final = 86_400
_NO_COORDINATOR: Final = "no coordinator answers on this machine: what it hears of them is not known"
_SOON: Final = "expires soon"


@click.command()
@config_option
@click.option("--all", "every", is_flag=True, help="Revoked ones and the roles too.")
@json_option
def ls(config_path: Path | None, every: bool, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """List the devices, whose certificate expires, and what the coordinator hears of them."""
    _, authority, views = _look(config_path)
    members = [
        member
        for member in sorted(authority.members().values(), key=lambda member: member.name)
        if every or (member.active and member.role == "device")
    ]
    if as_json:
        click.echo(json.dumps([_plain(authority, member, views) for member in members], indent=2))
        return
    if not members:
        click.echo("nobody is enrolled yet: fedmq device enroll NAME lets a device in")
        return
    width = max(len("device"), *(len(member.name) for member in members))
    click.echo(f"{'device':<{width}}  {'comes in by':<11}  {'until':<10}  {'state':<12}  coordinator")
    for member in members:
        until = "-" if member.not_after is None else f"{member.not_after:%Y-%m-%d}"
        seen = _seen(views, member.name)
        state = _state(authority, member)
        click.echo(f"{member.name:<{width}}  {member.how:<11}  {until:<10}  {state:<12}  {seen}".rstrip())
    due = [member.name for member in members if _state(authority, member) in {_SOON, "expired"}]
    if due:
        where = "" if config_path is None else f" --config {config_path}"
        click.echo(f"{len(due)} with little left: fedmq device renew --due{where}")
    if views is None:
        click.echo(_NO_COORDINATOR)
    crl = authority.crl_not_after()
    if crl is not None and crl - authority.now() < dt.timedelta(days=90):
        click.echo(
            f"warning: the list of revoked certificates ends on {crl:%Y-%m-%d}, and then nobody gets in",
            err=True,
        )


@click.command()
@click.argument("name")
@config_option
@json_option
def show(name: str, config_path: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Tell all that is known of one device."""
    site, authority, views = _look(config_path)
    with authority.changing() as change:
        member = change.register.members.get(name)
        if member is None:
            raise UsageError(change.unknown(name))
        pending = name in change.register.pending
    plain = _plain(authority, member, views) | {
        "folder": str(site.member(name).folder),
        "broker_knows": not pending,
    }
    if as_json:
        click.echo(json.dumps(plain, indent=2))
        return
    click.echo(f"{member.name}: {_state(authority, member)}")
    click.echo(f"  enrolled     {member.enrolled_at:%Y-%m-%d %H:%M} UTC, comes in by {member.how}")
    if member.revoked_at is not None:
        click.echo(f"  revoked      {member.revoked_at:%Y-%m-%d %H:%M} UTC")
    if member.how == "certificate":
        for one in member.certificates:
            what = "revoked" if one.revoked_at else "until"
            when = one.revoked_at or one.not_after
            key = "" if one.made_key else ", of a key that the device made"
            click.echo(f"  certificate  {one.serial:x}, {what} {when:%Y-%m-%d}{key}")
    click.echo(f"  files        {site.member(name).folder}")
    if pending:
        click.echo("  broker       has not been told yet; the next `fedmq device` command tries again")
    unheard = _NO_COORDINATOR if views is None else "the coordinator has not heard of it"
    view = (views or {}).get(name)
    click.echo(f"  coordinator  {unheard if view is None else _seen(views, name)}")
    if view is not None:
        click.echo(f"               {view.updates} updates, agent {view.agent_version or 'unknown'}")


def _look(config_path: Path | None) -> tuple[Site, Authority, dict[str, DeviceView] | None]:
    with needs("broker"):
        from fedmq_broker.authority import Authority
    configuration, site = read_site(config_path)
    authority = Authority.open(site.authority.folder)
    return site, authority, _views(configuration)


def _views(configuration: Configuration) -> dict[str, DeviceView] | None:
    """What the coordinator says of each device; None where none answers on this machine."""
    try:
        from fedmq_coordinator.shell.client import Client
    except ImportError:
        return None
    state_dir = configuration.table("coordinator", CoordinatorTable).state_dir
    with contextlib.suppress(FedmqError), Client(state_dir) as client:
        return {view.device: view for view in client.devices()}
    return None


def _state(authority: Authority, member: Member) -> str:
    if not member.active:
        return "revoked"
    if member.not_after is None:
        return "enrolled"
    if member.not_after <= authority.now():
        return "expired"
    return _SOON if authority.is_due(member.current) else "enrolled"


def _seen(views: dict[str, DeviceView] | None, name: str) -> str:
    view = (views or {}).get(name)
    if view is None:
        return "-"
    said = f"{view.state} for {_duration(view.since_s)}"
    return f"{said}; {printable(view.problem)}" if view.problem else said


def _duration(seconds: float) -> str:
    for unit_s, unit in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plain(authority: Authority, member: Member, views: dict[str, DeviceView] | None) -> dict[str, Any]:
    view = (views or {}).get(member.name)
    return {
        "name": member.name,
        "role": member.role,
        "how": member.how,
        "state": _state(authority, member),
        "enrolled_at": member.enrolled_at.isoformat(),
        "revoked_at": None if member.revoked_at is None else member.revoked_at.isoformat(),
        "not_after": None if member.not_after is None else member.not_after.isoformat(),
        "serial": None if member.serial is None else f"{member.serial:x}",
        "coordinator": None if view is None else view.model_dump(mode="json"),
    }
