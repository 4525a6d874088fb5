"""What the documents show is true: commands parse, settings hold, the example task trains, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from fedmq.tables import models, read
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.task import Task
from tests.command_lines import check_command

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    if "node_modules" not in path.parts
)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language; `""` for those that name none."""
    return [
        body
        for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if name == language
    ]


def commands(text: str) -> list[list[str]]:
    """Every `fedmq ...` in the blocks and the running text of a document, as arguments."""
    lines = [
        line
        for language in ("", "bash", "sh", "console")
        for block in blocks(text, language)
        for line in block.splitlines()
    ]
    lines += re.findall(
        r"`((?:fedmq|make) [^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    found = [
        shlex.split(line.removeprefix("$ "), comments=True)
        for line in lines
        if re.match(r"(\$ )?(fedmq|make) ", line)
    ]
    return [words for words in found if not any(word in {"…", "..."} for word in words)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_document_are_ours(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for program, *arguments in commands(document.read_text(encoding="utf-8")):
        if program == "fedmq":
            check_command(arguments)
        else:
            targets = [word for word in arguments if "=" not in word]
            assert all(re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) for target in targets), (
                arguments
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_options_of_the_demo_are_there() -> None:
    rows = re.findall(r"^\| `(--[^`]+)` \|", README, re.MULTILINE)
    assert len(rows) >= 3
    for row in rows:
        check_command(["demo", *shlex.split(row)])


def test_the_settings_shown_hold(tmp_path: Path) -> None:
    tables = blocks(README, "toml")
    assert len(tables) >= 2
    for table in tables:
        assert tomllib.loads(table)["federation"]["name"] == "home"
        path = tmp_path / "shown.toml"
        path.write_text(table, encoding="utf-8")
        assert list(read(path, environ={}).show(models()))


def test_the_task_shown_is_a_task_that_learns() -> None:
    [shown] = blocks(README, "python")
    assert len(shown.strip().splitlines()) < 30
    space: dict[str, object] = {}
    exec(compile(shown, "README.md", "exec"), space)
    task = space["task"]
    assert isinstance(task, Task)
    x, y = task.load_data(DeviceContext(partition_id=1, num_partitions=2))
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(dim=1) == y).float().mean() > 0.95
