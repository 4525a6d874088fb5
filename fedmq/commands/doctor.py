"""`fedmq agent doctor`: what is wrong with a device, said on the device itself, each finding with its mend.

Exit codes: 0 all is well; 1 something failed; 3 nothing failed, but something should be looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from fedmq.commands.options import config_option, json_option, printable
from fedmq_protocol.errors import UsageError

if TYPE_CHECKING:
    from fedmq_edge_agent.examining.findings import Finding, Level
    from fedmq_edge_agent.shell.settings import AgentSettings

_COLUMNS: Final = 80
_COLOURS: Final[dict[Level, str]] = {
    "ok": "green",
    "skipped": "bright_black",
    "warning": "yellow",
    "failed": "red",
}


@click.command("doctor")
@config_option
@json_option
@click.option("--without-torch", is_flag=True, help="Leave out what starts PyTorch: torch, task and data.")
def agent_doctor(
    config_path: Path | None,
    as_json: bool,  # noqa: FBT001 - click's signature
    without_torch: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Examine this device: what is wrong, and how to mend it.

    While the agent runs, nothing connects in its name. Otherwise the examination does so for some seconds, and leaves
    nothing behind. Exit code: 0 all is well, 1 something failed, 3 there are warnings only.
    """
    sys.exit(asyncio.run(_examine(config_path, as_json=as_json, without_torch=without_torch)))


async def _examine(config_path: Path | None, *, as_json: bool, without_torch: bool) -> int:
    from fedmq_edge_agent.examining.checks import CHECKS, CONFIGURATION, TRAINING, examined
    from fedmq_edge_agent.examining.findings import exit_code, failed, fine, plain, skipped

    findings: list[Finding] = []
    printed = Printed(findings, quiet=as_json)
    show = printed.show
    device = federation = ""
    left_out = TRAINING if without_torch else frozenset[str]()
    try:
        settings = _settings(config_path)
    except UsageError as error:
        show(failed(*_mended(str(error))).named(CONFIGURATION, 0.0))
        for check in CHECKS:
            show(skipped(f"needs {CONFIGURATION}").named(check.name, 0.0))
    else:
        device, federation = settings.id, settings.federation
        where = "the environment" if config_path is None else str(config_path)
        if not as_json:
            click.echo(f"{device}, in the federation {federation}, at {settings.broker.shown_url}\n")
        show(fine(f"{where} can be read{_as_owner(settings.state_dir)}").named(CONFIGURATION, 0.0))
        async for finding in examined(settings, without=left_out, begun=printed.begin):
            show(finding)
    if as_json:
        click.echo(json.dumps(plain(findings, device=device, federation=federation), indent=1))
    else:
        click.echo(f"\n{summary(findings)}")
    return exit_code(findings)


def _settings(config_path: Path | None) -> AgentSettings:
    """As the agent would read them.

    Raises:
        UsageError: it could not.
    """
    from fedmq.tables import agent_settings, read

    settings = agent_settings(read(config_path))
    settings.check()
    return settings


def _mended(text: str) -> tuple[str, str]:
    """A complaint about the configuration, and what to do."""
    found, separator, mend = text.partition("; ")
    return (
        found,
        mend if separator else "`fedmq config show` lists every setting, and where its value came from",
    )


def _as_owner(state_dir: Path) -> str:
    """Root sees and may do what the agent may not: go on as the user to whom the agent's folder belongs."""
    with contextlib.suppress(OSError, KeyError):
        owner = state_dir.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            import pwd

            user = pwd.getpwuid(owner)
            os.initgroups(user.pw_name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(owner)
            os.environ["HOME"] = user.pw_dir
            return f"; going on as {user.pw_name}, whose the state folder is"
    return ""


class Printed:
    """Findings, printed as they come: the level, the name, and within 80 columns what was found and the mend.

    Args:
        findings: where they are kept, too.
        name_chars: of the longest name.
        quiet: print nothing.
    """

    def __init__(self, findings: list[Finding], *, name_chars: int = 14, quiet: bool = False) -> None:
        self._findings = findings
        self._quiet = quiet
        self._name_chars = name_chars
        self._indent = 11 + name_chars

    def begin(self, name: str) -> None:
        """On a terminal, say what is being looked at, until it is found."""
        if not self._quiet and sys.stdout.isatty():
            click.echo(click.style(f"{'…':<8} {name}", dim=True), nl=False)

    def show(self, finding: Finding) -> None:
        """Print one, and keep it."""
        self._findings.append(finding)
        if self._quiet:
            return
        if sys.stdout.isatty():
            click.echo("\r\x1b[K", nl=False)
        head = f"{click.style(f'{finding.level:<8}', fg=_COLOURS[finding.level])} {finding.name:<{self._name_chars}}"
        lines = self._wrapped(finding.found)
        click.echo(f"{head}  {lines[0]}")
        for line in lines[1:]:
            click.echo(" " * self._indent + line)
        for number, line in enumerate(self._wrapped(finding.mend) if finding.mend else ()):
            click.echo(f"{'mend:' if number == 0 else '':>{self._indent - 2}}  {line}")

    def _wrapped(self, text: str) -> list[str]:
        """Lines; at least one."""
        width = _COLUMNS - self._indent
        return textwrap.wrap(printable(text), width, break_on_hyphens=False, break_long_words=False) or [""]


def summary(findings: Iterable[Finding]) -> str:
    """How many of what, and the names of those that failed."""
    listed = list(findings)
    failures = [finding.name for finding in listed if finding.level == "failed"]
    warnings = [finding.name for finding in listed if finding.level == "warning"]
    parts = [
        f"failed: {', '.join(failures)}" if failures else "",
        f"warnings: {', '.join(warnings)}" if warnings else "",
    ]
    return "; ".join(part for part in parts if part) or "All is well."
