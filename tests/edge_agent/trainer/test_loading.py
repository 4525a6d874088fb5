"""What goes wrong in a user's file is told in one line, with the file and the line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.loading import load_task
from tests.edge_agent.trainer.asking import HEAD, WriteTask

MODEL = "model=lambda: nn.Linear(6, 2), load_data=data"


def line_of(text: str, fragment: str) -> int:
    """The number of the line that has `fragment`, as `write_task` writes it."""
    return next(number for number, line in enumerate(text.splitlines(), 1) if fragment in line)


def test_a_task_is_found_by_its_name_or_as_the_only_one(write_task: WriteTask) -> None:
    path = write_task(HEAD + f'\nother = Task(name="t", version="3", {MODEL})\n')
    assert load_task(path).version == "3"
    assert load_task(f"{path}:other").name == "t"
    two = write_task(HEAD + f'\na = Task(name="a", {MODEL})\nb = Task(name="b", {MODEL})\n')
    with pytest.raises(TrainerError, match=r"defines 2 tasks.*:name"):
        load_task(two)
    assert load_task(f"{two}:b").name == "b"
    with pytest.raises(TrainerError, match="no fedmq Task called c"):
        load_task(f"{two}:c")


def test_a_file_imports_what_lies_beside_it(
    write_task: WriteTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_task.py").write_text("NAME = 'beside'\n")
    path = write_task(HEAD + f"\nimport beside_the_task\ntask = Task(name=beside_the_task.NAME, {MODEL})\n")
    assert load_task(path).name == "beside"


def test_an_installed_module_is_imported() -> None:
    assert load_task("fedmq.tasks.iris").name == "iris"
    assert load_task("fedmq.tasks.iris:task").name == "iris"


@pytest.mark.parametrize(
    ("text", "says", "fragment"),
    [
        ("x = 1\ndef broken(:\n", "SyntaxError: invalid syntax", "broken"),
        ("import torch\nx = [][3]\n", "IndexError: list index out of range", "[][3]"),
        ("import no_such_package_here\n", "install no_such_package_here where the trainer runs", "import"),
        ("raise SystemExit(2)\n", "SystemExit: 2", "raise"),
        (
            "from fedmq import Task\n\ntask = Task(name='', model=print, load_data=print)\n",
            "1 to 128",
            "Task(",
        ),
        (
            "from fedmq import Task\ntask = Task(name='x', model=3, load_data=print)\n",
            "a task's model",
            "Task(",
        ),
        (
            "from fedmq import Task\ntask = Task(name='x', load_data=print)\n",
            "missing 1 required keyword-only argument: 'model'",
            "Task(",
        ),
    ],
)
def test_a_broken_file_names_its_line(write_task: WriteTask, text: str, says: str, fragment: str) -> None:
    path = write_task(text)
    with pytest.raises(TrainerError, match=re.escape(says)) as caught:
        load_task(path)
    assert caught.value.code == "task-error"
    assert "\n" not in caught.value.detail
    assert f"{path}:{line_of(text, fragment)}" in caught.value.detail


def test_a_syntax_error_shows_its_line(write_task: WriteTask) -> None:
    path = write_task("x = 1\n  \ndef model(:\n    pass\n")
    with pytest.raises(
        TrainerError, match=rf'SyntaxError: invalid syntax \({re.escape(str(path))}:3: "def model\(:"\)$'
    ):
        load_task(path)


def test_a_missing_file_module_or_task(tmp_path: Path, write_task: WriteTask) -> None:
    with pytest.raises(TrainerError, match=r"there is no task file .*/none\.py"):
        load_task(str(tmp_path / "none.py"))
    with pytest.raises(TrainerError, match=r"^no task file or module called fedmq\.tasks\.none$"):
        load_task("fedmq.tasks.none")
    with pytest.raises(TrainerError, match=r"no task file or module called no\.such\.mod$"):
        load_task("no.such.mod")
    with pytest.raises(TrainerError, match=r"neither a \.py file nor an importable"):
        load_task("not a module")
    with pytest.raises(TrainerError, match=r"defines no task; add: task = Task"):
        load_task(write_task("x = 1\n"))


def test_a_failed_file_leaves_no_module_behind(write_task: WriteTask) -> None:
    before = set(sys.modules)
    with pytest.raises(TrainerError):
        load_task(write_task("raise ValueError('no')\n"))
    assert not {name for name in set(sys.modules) - before if name.startswith("fedmq_task_")}
