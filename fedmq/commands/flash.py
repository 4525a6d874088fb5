"""`fedmq device flash`: turn a bare board into a member of the federation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmq.commands.options import config_option
from fedmq_protocol.errors import UsageError

if TYPE_CHECKING:
    from fedmq_edge_agent.flashing.bundle import Bundle

_MB = 1_000_000


class Bars:
    """A progress bar for each thing that takes long; on no terminal, a line when it is done."""

    def __init__(self) -> None:
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `fedmq_edge_agent.flashing.progress.Progress`."""
        total = max(total, 1)
        if sys.stderr.isatty():
            filled = 30 * done // total
            bar = "█" * filled + "░" * (30 - filled)
            click.echo(f"\r{what:<12} {bar} {100 * done // total:3} %", nl=done >= total, err=True)
        elif done >= total and what != self._what:
            click.echo(f"{what}: done", err=True)
        self._what = "" if done < total else what


@click.command()
@click.argument("name")
@click.option(
    "--target",
    required=True,
    metavar="TARGET",
    help="bundle; ssh:user@host[:port]; or sdcard:IMAGE.",
)
@config_option
@click.option(
    "--member", "folder", type=click.Path(path_type=Path), help="The device's folder; else the site's."
)
@click.option("--task", help="What it trains: a file, a folder, a module; else as its device.toml says.")
@click.option("--with", "extra", multiple=True, metavar="REQUIREMENT", help="What the task needs besides.")
@click.option(
    "--arch", default="arm64", show_default=True, help="arm64, armhf or x86-64; ssh asks the board."
)
@click.option("--python", default="3.11", show_default=True, help="The board's Python; ssh asks the board.")
@click.option("--without-torch", is_flag=True, help="The board has a PyTorch of its own.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(), help="Where a bundle goes; else here."
)
def flash(  # noqa: PLR0913, PLR0917 - an option each
    name: str,
    target: str,
    config_path: Path | None,
    folder: Path | None,
    task: str | None,
    extra: tuple[str, ...],
    arch: str,
    python: str,
    without_torch: bool,  # noqa: FBT001 - click's signature
    out: Path,
) -> None:
    """Turn a board into device NAME: agent, task, settings and identity, all that it needs, without internet there.

    `fedmq device enroll NAME` comes first.
    """
    from fedmq.tables import read, site_of, task_place
    from fedmq_edge_agent.flashing import bundle, settings

    if folder is None:
        folder = site_of(read(config_path)).member(name).folder
    member = settings.read_member(folder, name)
    where = task or member.task
    plan = bundle.plan(
        member,
        arch,
        python,
        task=None if where is None else task_place(where),
        torch=not without_torch,
        extra=extra,
    )
    if target != "bundle":
        raise UsageError(f"there is no target {target!r}: bundle")
    made = bundle.write(plan, out / f"fedmq-{name}-{arch}-python{python}.run", progress=Bars())
    _tell_of_bundle(made, with_key=member.has_key)


def _tell_of_bundle(made: Bundle, *, with_key: bool) -> None:
    click.echo(f"bundle    {made.path}, {made.size / _MB:.0f} MB; readable by you alone")
    click.echo(f"installs  some {made.installed_bytes / _MB:.0f} MB, as release {made.release}")
    if with_key:
        click.echo("secret    it holds the device's private key: delete it once the device has it")
    click.echo(f"next      copy it to the board, and there: sudo sh {made.path.name}")
