"""`--target sdcard:IMAGE`: an image, or the card itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from fedmq.flashing.job import Job, tell, tell_of_software
from fedmq_edge_agent.flashing import sdcard
from fedmq_edge_agent.flashing.network import Wifi
from fedmq_protocol.errors import UsageError


def card(job: Job, where: str) -> None:
    """Put the bundle, and what its first start is to know, into the image."""
    path = Path(where)
    sdcard.check_target(path, yes=job.yes)
    wifi = _wifi(job)
    found = sdcard.open_card(path)
    click.echo(f"{found.path}: {found.system}, {found.platform.arch}, Python {found.python}")
    member = job.member()
    if not member.can_come_in:
        raise UsageError(
            f"the key of {job.name} is on the board that made it, and a card needs one: enroll another device for "
            f"it, or fedmq device revoke {job.name} and enroll it anew"
        )
    for said, is_, what in (
        (job.arch, found.platform.arch, "--arch"),
        (job.python, found.python, "--python"),
    ):
        if said not in {None, is_}:
            raise UsageError(f"{what} {said}: the image's is {is_}; leave it out")
    plan = job.plan(member, arch=found.platform.arch, python=found.python)
    with tempfile.TemporaryDirectory(prefix="fedmq-flash-") as folder:
        made = job.write(plan, Path(folder) / "bundle.run")
        told = sdcard.customise(found, made.path, wifi=wifi, hostname=job.hostname)
    tell_of_software(made)
    for name, text in told:
        tell(name, text)
    if member.has_key:
        tell("secret", f"{path} holds the device's private key until its first start")
    tell("next", "write it to a card, start the board; journalctl -u fedmq-firstboot there tells how it went")


def _wifi(job: Job) -> Wifi | None:
    if job.wifi is None:
        if job.wifi_password_file or job.wifi_country:
            raise UsageError("--wifi-password-file and --wifi-country need --wifi beside them")
        return None
    password = None
    if job.wifi_password_file is not None:
        try:
            password = job.wifi_password_file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {job.wifi_password_file}: {error}") from None
    return Wifi(job.wifi, password, job.wifi_country)
