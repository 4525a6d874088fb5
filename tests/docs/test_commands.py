"""A mend that names a command names one that there is: in messages, in comments, and in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import click

from fedmq.cli import cli

ROOT = Path(__file__).parents[2]
SOURCES = ("fedmq", "edge_agent", "broker", "coordinator", "protocol")
NAMED = re.compile(r"`(?:sudo )?fedmq ([a-z]+)(?: ([a-z]+))?")


def named() -> dict[tuple[str, str], Path]:
    """Group and verb as some text names them, and where."""
    texts = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    for source in SOURCES:
        texts += (ROOT / source).rglob("*.py")
    return {
        (group, verb): text
        for text in texts
        for group, verb in NAMED.findall(text.read_text(encoding="utf-8"))
    }


def test_every_command_that_is_named_is_there() -> None:
    context = click.Context(cli)
    found = named()
    assert len(found) > 20
    for (group, verb), where in found.items():
        command = cli.get_command(context, group)
        assert command is not None, f"{where}: fedmq {group}"
        if verb and isinstance(command, click.Group):
            assert command.get_command(context, verb) is not None, f"{where}: fedmq {group} {verb}"
