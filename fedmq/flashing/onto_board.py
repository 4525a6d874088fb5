"""`--target ssh:user@host`: a board that is on, and in this network.

The board makes its own key: the software goes first, then its request comes here, is signed, and its certificate goes
there. Killed at any point, the same call again completes it: the board keeps its key.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import tomllib
from pathlib import Path

import click

from fedmq.extras import needs
from fedmq.flashing.job import Bars, Job, tell, tell_of_software
from fedmq_edge_agent.flashing import settings
from fedmq_edge_agent.flashing.remote import Board, Remote, Target
from fedmq_edge_agent.flashing.settings import Member


def ssh(job: Job, where: str) -> None:
    """Copy the bundle there, install it, and give the device its identity."""
    target = Target.parse(where)
    remote = Remote(target, config=job.ssh_config)
    board = remote.probe()
    python = job.python or board.pythons[0]
    click.echo(f"{target}: {board.platform.arch}, Python {', '.join(board.pythons)}")
    member = _member(job)
    makes_key = _makes_key(job, member)
    shipped = _without_identity(member) if makes_key else member
    plan = job.plan(shipped, arch=job.arch or board.platform.arch, python=python)
    with tempfile.TemporaryDirectory(prefix="fedmq-flash-") as folder:
        made = job.write(plan, Path(folder) / "bundle.run")
        remote.check_room(board, bundle_bytes=made.size, installed_bytes=made.installed_bytes)
        path = remote.send(made.path, Bars())
    start = not job.no_start
    remote.install(path, start=start and not makes_key)
    tell_of_software(made)
    if makes_key:
        _certify(job, remote)
        tell("key", "made by the board, in /etc/fedmq/identity/key.pem: it never left it")
        if start and board.systemd:
            remote.start_agent()
    else:
        tell("identity", "in /etc/fedmq/identity, for root and the agent alone")
    tell("settings", "/etc/fedmq/device.toml")
    tell("agent", _agent(board, start=start))


def _agent(board: Board, *, start: bool) -> str:
    if not start:
        return "installed, not started, as asked"
    if not board.systemd:
        return "installed; there is no systemd that runs: start it there as the installer says"
    return "started; journalctl -u fedmq-agent there tells how it fares, and fedmq agent doctor examines it"


def _makes_key(job: Job, member: Member) -> bool:
    """Whether the board makes its key: not where it comes in by password, or is none of this site's."""
    return not (job.send_key or job.folder is not None or "password" in member.identity)


def _member(job: Job) -> Member:
    """The device as it was enrolled or, where it was not, as it will be."""
    folder = job.folder or job.site.member(job.name).folder
    if job.folder is not None or job.send_key or (folder / "device.toml").exists():
        with_all = (folder / "cert.pem").exists() or (folder / "password").exists()
        if with_all or job.folder is not None or job.send_key:
            return settings.read_member(folder, job.name)
    with needs("broker"):
        from fedmq.device_settings import device_toml

    text = device_toml(job.configuration, job.name, password=False)
    return settings.describe(job.name, tomllib.loads(text), folder)


def _without_identity(member: Member) -> Member:
    """What goes ahead: settings alone. The authority's certificate follows with the device's own."""
    return dataclasses.replace(member, identity={})


def _certify(job: Job, remote: Remote) -> None:
    with needs("broker"):
        from fedmq.commands.site_options import operator_settings, site_with_members
        from fedmq.device_settings import device_toml
        from fedmq_broker import membership
        from fedmq_broker.authority import Authority

    site, live = site_with_members(job.configuration), operator_settings(job.configuration)
    request = remote.make_request(job.name)
    before = Authority.open(site.authority.folder).members().get(job.name)
    if before is not None and before.active:
        made, _ = asyncio.run(
            membership.renew(site, job.name, live=live, csr=request, revoke_old=_holds_key(job))
        )
    else:
        every, _ = asyncio.run(
            membership.enrol(
                site,
                [job.name],
                live=live,
                csr=request,
                settings=lambda name: device_toml(job.configuration, name, password=False),
            )
        )
        made = every[0]
    assert made.certificate is not None
    remote.put_identity([("ca.pem", site.authority.ca.read_bytes()), ("cert.pem", made.certificate)])


def _holds_key(job: Job) -> bool:
    """Whether a key of the device lies here: then what it opens is closed at once."""
    return job.site.member(job.name).key.exists()
