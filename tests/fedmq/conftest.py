"""What the tests of the front door share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fedmq.command_line import CommandLine


@pytest.fixture
def fedmq(tmp_path: Path) -> Iterator[CommandLine]:
    """The command line, in a folder of its own; whatever it leaves behind is ended."""
    command_line = CommandLine(tmp_path)
    yield command_line
    for process in command_line.alive():
        process.kill()
