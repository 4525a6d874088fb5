"""`fedmq agent status`: how the agent on this board stands, from the file that it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

from fedmq.commands.options import config_option, json_option, printable
from fedmq.tables import DeviceTable, read
from fedmq_edge_agent.core.words import size, span
from fedmq_edge_agent.shell.status import FILE, Found, find
from fedmq_protocol.errors import ConfigError

TAKES_PART: Final = 0
"""It trains, waits for its turn, or rests as its own conditions say."""
CANNOT: Final = 3
"""It runs and cannot take part: offline, or hindered."""
NOT_THERE: Final = 4
"""No agent with this state folder runs, or it hangs."""


@click.command()
@config_option
@click.option("--state-dir", type=click.Path(path_type=Path), help="The agent's; else that of the file.")
@json_option
def status(config_path: Path | None, state_dir: Path | None, as_json: bool) -> int:  # noqa: FBT001 - click's signature
    """Say what the agent on this board does, waits for, or why it does not train.

    The exit code is 0 where it takes part or rests by its own rules, 3 where it is offline or hindered, 4 where it does
    not run or does not answer.
    """
    found = find(_folder(config_path, state_dir))
    code = exit_code(found)
    if as_json:
        plain = {"running": found.running, "silent": found.silent, "age_s": round(found.age_s, 1)}
        click.echo(json.dumps({**(found.status or {}), **plain, "exit_code": code}))
    else:
        for name, text in described(found):
            click.echo(f"{name:<12} {printable(text)}")
    return code


def exit_code(found: Found) -> int:
    """What a script is told."""
    if found.status is None or not found.running or found.silent:
        return NOT_THERE
    return CANNOT if found.status["state"] in {"offline", "hindered"} else TAKES_PART


def described(found: Found) -> list[tuple[str, str]]:
    """Lines for people."""
    said = found.status
    if said is None:
        return [("not running", f"no agent has left a {FILE} in this state folder, or you may not read it")]
    lines = [("device", f"{said['device']} of {said['federation']}, agent {said['agent_version']}")]
    if not found.running:
        return [*lines, ("not running", f"process {said['pid']} is gone; it did not say goodbye")]
    if found.silent:
        lines.append(("silent", f"for {span(found.age_s)}: it hangs, or its disk does"))
    lines.append(("state", f"{said['state']} for {span(said['state_s'] + found.age_s)}"))
    if said["problem"]:
        lines.append(("why", said["problem"]))
    lines.append(("waits", f"{said['waiting']}; as of {span(found.age_s)} ago"))
    if said["run"]:
        version = "no version yet" if said["version"] is None else f"version {said['version']}"
        lines.append(("run", f"{said['run']}, round {said['round']}, {version}"))
        lines.append(("updates", f"{said['updates_done']} made, {said['updates_waiting']} without a receipt"))
    lines.append(("broker", f"{said['broker']}, {'connected' if said['connected'] else 'not connected'}"))
    lines.append(("traffic", f"{size(said['sent_bytes'])} sent, {size(said['received_bytes'])} received"))
    lines.append(("trainer", _trainer(said)))
    if said["agent_resident_bytes"] is not None:
        lines.append(("memory", f"{size(said['agent_resident_bytes'])} for the agent"))
    if said["board"] is not None:
        lines.append(("board", _board(said["board"])))
    return lines


def _trainer(said: dict[str, Any]) -> str:
    parts = [said["trainer"]]
    if said["trainer_resident_bytes"] is not None:
        parts.append(f"{size(said['trainer_resident_bytes'])} resident")
    if said["failures"]:
        parts.append(f"failed {said['failures']} times in a row, last: {said['last_failure']}")
    return ", ".join(parts)


def _board(board: dict[str, Any]) -> str:
    """What it tells of itself, as far as it was asked."""
    parts = []
    if board["power"] is not None:
        parts.append("external power" if board["power"] else "on battery")
    if board["battery"] is not None:
        parts.append(f"battery {board['battery']:.0f} %")
    if board["temperature"] is not None:
        sensor, degrees = board["temperature"]
        parts.append(f"{sensor} {degrees:.0f} °C")
    if board["minute"] is not None:
        parts.append(f"its clock shows {board['minute'] // 60:02}:{board['minute'] % 60:02}")
    if board["synchronised"] is False:
        parts.append("which is not synchronised")
    if board["metered"] is not None:
        parts.append("metered link" if board["metered"] else "unmetered link")
    return ", ".join(parts) or "tells nothing of what was asked"


def _folder(config_path: Path | None, state_dir: Path | None) -> Path:
    if state_dir is not None:
        return state_dir
    table = read(config_path).table("device", DeviceTable)
    if table.state_dir is None and table.id is None:
        raise ConfigError("which agent? Name its settings with --config, or its folder with --state-dir")
    return table.state_dir or Path("state") / str(table.id)
