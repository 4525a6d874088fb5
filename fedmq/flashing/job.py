"""What was asked for, and the parts that each kind of target needs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmq.tables import read, site_of, task_place
from fedmq_edge_agent.flashing import bundle, settings
from fedmq_edge_agent.flashing.bundle import Bundle, Plan
from fedmq_edge_agent.flashing.settings import Member

if TYPE_CHECKING:
    from fedmq.config import Configuration
    from fedmq_broker.site import Site

_MB = 1_000_000
_WIDTH = 30


@dataclass
class Bars:
    """A progress bar for each thing that takes long; where nobody looks, a line when it is done."""

    _shown: set[str] = field(default_factory=set)
    _last: tuple[str, int] = ("", -1)

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `fedmq_edge_agent.flashing.progress.Progress`."""
        percent = 100 * done // total if total else 100
        if sys.stderr.isatty():
            if (what, percent) != self._last:
                filled = _WIDTH * percent // 100
                bar = "█" * filled + "░" * (_WIDTH - filled)
                click.echo(f"\r{what:<10}{bar} {percent:3} %", nl=percent == 100, err=True)  # noqa: PLR2004 - the end
        elif done >= total and what not in self._shown:
            self._shown.add(what)
            click.echo(f"{what}: done", err=True)
        self._last = (what, percent)


@dataclass(frozen=True)
class Job:
    """One call of `fedmq device flash`; each attribute is an option of it."""

    name: str
    config_path: Path | None = None
    folder: Path | None = None
    task: str | None = None
    extra: tuple[str, ...] = ()
    without_torch: bool = False
    arch: str | None = None
    python: str | None = None
    out: Path = field(default_factory=Path)
    send_key: bool = False
    ssh_config: Path | None = None
    no_start: bool = False
    wifi: str | None = None
    wifi_password_file: Path | None = None
    wifi_country: str | None = None
    hostname: str | None = None
    yes: bool = False

    @cached_property
    def configuration(self) -> Configuration:
        """The operator's file."""
        return read(self.config_path, flags={"device.task": ("--task", self.task)})

    @property
    def site(self) -> Site:
        """Where the members' folders lie."""
        return site_of(self.configuration)

    def member(self) -> Member:
        """The device, as it was enrolled.

        Raises:
            FlashError: it was not.
        """
        return settings.read_member(self.folder or self.site.member(self.name).folder, self.name)

    def plan(self, member: Member, *, arch: str, python: str) -> Plan:
        """What goes onto the board.

        Raises:
            FlashError: nobody says what it trains, or nothing is made for such a board.
        """
        task = self.task or member.task
        return bundle.plan(
            member,
            arch,
            python,
            task=None if task is None else task_place(task),
            torch=not self.without_torch,
            extra=self.extra,
        )

    def write(self, plan: Plan, path: Path) -> Bundle:
        """Make the bundle, and show how far it is."""
        return bundle.write(plan, path, progress=Bars())


def tell(name: str, text: str) -> None:
    """A line of the closing summary."""
    click.echo(f"{name:<10}{text}")


def tell_of_software(made: Bundle) -> None:
    """What a bundle is."""
    tell("software", f"release {made.release}, {len(made.wheels)} wheels, {made.size / _MB:.0f} MB")
    tell("installed", f"some {made.installed_bytes / _MB:.0f} MB below /opt/fedmq")
