"""`fedmq device doctor NAME`: what is wrong with a device, as its operator's machine sees it, and as it says itself.

Exit codes as of `fedmq agent doctor`: 0 all is well; 1 something failed; 3 there are warnings only.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fedmq.commands.doctor import Printed, summary
from fedmq.commands.options import config_option, json_option
from fedmq.extras import needs

if TYPE_CHECKING:
    from fedmq_edge_agent.examining.findings import Finding

_SSH_S: Final = 180.0
"""PyTorch may take half a minute to import from a slow card, and the network its time."""
_ON_DEVICE: Final = (
    "f=/opt/fedmq/bin/fedmq; [ -x $f ] || f=fedmq; "
    'if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then s="sudo -n"; else s=; fi; '
    "$s $f agent doctor --json"
)
"""As root where that is granted without a password: the settings are for root and the agent's user alone."""


@click.command()
@click.argument("name")
@config_option
@click.option("--ssh", "target", metavar="USER@HOST[:PORT]", help="Examine it on the device itself, too.")
@click.option(
    "--device-config",
    default="/etc/fedmq/device.toml",
    show_default=True,
    help="The agent's settings there, for --ssh.",
)
@click.option("--without-torch", is_flag=True, help="There, leave out what starts PyTorch.")
@json_option
def doctor(
    name: str,
    config_path: Path | None,
    target: str | None,
    device_config: str,
    without_torch: bool,  # noqa: FBT001 - click's signature
    as_json: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Examine the device NAME from here: is it a member, what may it do, who hears it, and how to mend that.

    With --ssh its own `fedmq agent doctor` is run there, and told with the rest. Exit code: 0 all is well, 1 something
    failed, 3 there are warnings only.
    """
    there = None if target is None else partial(on_device, target, device_config, without_torch=without_torch)
    sys.exit(asyncio.run(_examine(name, config_path, there, as_json=as_json)))


async def _examine(
    name: str, config_path: Path | None, there: Callable[[], list[Finding]] | None, *, as_json: bool
) -> int:
    with needs("broker"):
        from fedmq.member_doctor import examined
    from fedmq.commands.site_options import operator_settings, read_site
    from fedmq_edge_agent.examining.findings import exit_code, plain

    configuration, site = read_site(config_path)
    findings: list[Finding] = []
    printed = Printed(findings, name_chars=14 if there is None else 20, quiet=as_json)
    if not as_json:
        click.echo(f"{name}, seen from here\n")
    async for finding in examined(
        name, configuration, site, operator_settings(configuration), begun=printed.begin
    ):
        printed.show(finding)
    if there is not None:
        if not as_json:
            click.echo(f"\n{name}, seen from itself\n")
        printed.begin("device/ssh")
        for finding in await asyncio.to_thread(there):
            printed.show(finding)
    if as_json:
        click.echo(json.dumps(plain(findings, device=name), indent=1))
    else:
        click.echo(f"\n{summary(findings)}")
    return exit_code(findings)


def on_device(target: str, config: str, *, without_torch: bool = False) -> list[Finding]:
    """Run the device's own doctor there; its findings, their names with `device/` before them.

    Args:
        target: user@host, with :port where it is not 22.
        config: the agent's settings there.
        without_torch: leave out there what starts PyTorch.
    """
    from fedmq_edge_agent.examining.findings import failed, fine

    host, _, port = target.rpartition(":") if target.rpartition(":")[2].isdigit() else (target, "", "")
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *(("-p", port) if port else ())]
    options = f"--config {shlex.quote(config)}{' --without-torch' if without_torch else ''}"
    try:
        result = subprocess.run(  # noqa: S603 - where the operator says
            [*command, "--", host, f"{_ON_DEVICE} {options}"],
            capture_output=True,
            text=True,
            errors="replace",  # a board's banner may be in whatever letters
            timeout=_SSH_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return [failed("ssh is not installed here", "install it (openssh-client)").named("device/ssh", 0.0)]
    except subprocess.TimeoutExpired:
        found = failed(f"{target} did not answer within {_SSH_S:g} s", f"try it by hand: ssh {target}")
        return [found.named("device/ssh", _SSH_S)]
    told = _told(result.stdout)
    if told is None:
        words = (result.stderr.strip() or result.stdout.strip()).splitlines() or ["it said nothing"]
        mend = f"try it by hand: ssh {target} sudo /opt/fedmq/bin/fedmq agent doctor --config {config}"
        return [failed(f"{target}: {words[-1][:300]}", mend).named("device/ssh", 0.0)]
    return [fine(f"{target} answers").named("device/ssh", 0.0), *told]


def _told(text: str) -> list[Finding] | None:
    """What a device's doctor printed, as findings; None where it is something else."""
    from fedmq_edge_agent.examining.findings import Finding

    try:
        given: list[dict[str, Any]] = json.loads(text)["findings"]
        return [
            Finding(
                f"device/{str(one['name'])[:40]}",
                one["level"] if one["level"] in {"ok", "skipped", "warning"} else "failed",
                str(one["found"])[:2_000],
                str(one["mend"])[:2_000],
                float(one["took_s"]),
            )
            for one in given
        ]
    except (ValueError, KeyError, TypeError):
        return None
