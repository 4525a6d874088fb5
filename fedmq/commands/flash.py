"""`fedmq device flash`: turn a bare board into a member of the federation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from fedmq.commands.options import config_option
from fedmq_protocol.errors import UsageError


@click.command()
@click.argument("name")
@click.option("--target", required=True, help="bundle; ssh:user@host[:port]; or sdcard:IMAGE.")
@config_option
@click.option(
    "--member", "folder", type=click.Path(path_type=Path), help="The device's folder; else the site's."
)
@click.option("--task", help="What it trains: a file, a folder, a module; else as its device.toml says.")
@click.option("--with", "extra", multiple=True, metavar="REQUIREMENT", help="What the task needs besides.")
@click.option("--without-torch", is_flag=True, help="The board has a PyTorch of its own.")
@click.option("--arch", help="Of a bundle: arm64 (the default), armhf or x86-64; others ask the board.")
@click.option("--python", help="Of a bundle: the board's Python, 3.11 by default; others ask the board.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(), help="Where a bundle goes; else here."
)
@click.option("--send-key", is_flag=True, help="Over ssh: the key made here, not one that the board makes.")
@click.option("--ssh-config", type=click.Path(path_type=Path), help="Over ssh: in place of ~/.ssh/config.")
@click.option("--no-start", is_flag=True, help="Over ssh: install, but do not start the agent.")
@click.option("--wifi", metavar="SSID", help="On a card: the network that the board joins.")
@click.option(
    "--wifi-password-file",
    type=click.Path(path_type=Path),
    help="On a card: its password, in a file's first line.",
)
@click.option("--wifi-country", metavar="XX", help="On a card: where the board is, for its radio.")
@click.option("--hostname", help="On a card: what the board calls itself.")
@click.option("--yes", is_flag=True, help="On a card: the target is a disk, and it is the right one.")
def flash(name: str, target: str, **options: object) -> None:
    """Turn a board into device NAME: agent, task, settings and identity, all that it needs, without internet there.

    \b
    bundle                 one file, for a board of --arch and --python: copy it there, run it
    ssh:user@host[:port]   copies and installs; the board makes its own key, which never leaves it
    sdcard:IMAGE           Debian or Raspberry Pi OS: the card's first start installs

    `fedmq device enroll NAME` comes first; over ssh a device that is not enrolled yet is enrolled on the way.
    """  # noqa: D301 - click's mark
    from fedmq.flashing import Job, bundle, card, ssh

    ways: Final[dict[str, Callable[[Job, str], None]]] = {"bundle": bundle, "ssh": ssh, "sdcard": card}
    kind, _, where = target.partition(":")
    if kind not in ways or (kind == "bundle") is bool(where):
        raise UsageError(f"--target {target!r} is none of bundle, ssh:user@host, sdcard:IMAGE")
    ways[kind](Job(name=name, **options), where)  # type: ignore[arg-type]
