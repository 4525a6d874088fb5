"""What a device trains, as files that travel with it: a Python file, a folder, or an installed module."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from fedmq_edge_agent.flashing.errors import FlashError

TASK_FOLDER: Final = "/opt/fedmq/current/task"
_OURS: Final = "fedmq.tasks"
_LEFT_OUT: Final = frozenset({"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"})


@dataclass(frozen=True)
class TaskFiles:
    """A task, ready to travel.

    Attributes:
        setting: what `[device] task` says on the device.
        files: where in a release each lies (below `task/`, or `lib/` for a module) -> the file here.
        requires: what it needs beyond the agent and PyTorch, as PEP 508 says it.
    """

    setting: str
    files: dict[str, Path] = field(default_factory=dict)
    requires: tuple[str, ...] = ()


def collect(task: str) -> TaskFiles:
    """Find a task's files: `digits.py`, a folder with `task.py` in it, `package.module`; `:name` may stand behind it.

    A folder's `requirements.txt` tells what it needs.

    Raises:
        FlashError: there is nothing of that name.
    """
    place, colon, name = task.rpartition(":")
    if not (colon and name.isidentifier()):
        place, name = task, ""
    suffix = f":{name}" if name else ""
    path = Path(place).expanduser()
    if path.is_dir():
        return _of_folder(path.resolve(), suffix)
    if place.endswith(".py") or "/" in place:
        if not path.is_file():
            raise FlashError(f"there is no task file {path}")
        return TaskFiles(f"{TASK_FOLDER}/{path.name}{suffix}", {f"task/{path.name}": path.resolve()})
    if place == _OURS or place.startswith(f"{_OURS}."):
        return TaskFiles(f"{place}{suffix}", requires=("scikit-learn",))  # its data sets
    return _of_module(place, suffix)


def _of_folder(folder: Path, suffix: str) -> TaskFiles:
    files = _below(folder, "task")
    entry = folder / "task.py"
    if not entry.is_file():
        candidates = sorted(folder.glob("*.py"))
        if len(candidates) != 1:
            raise FlashError(
                f"{folder} holds {len(candidates)} Python files and no task.py: name the file, or call it task.py"
            )
        entry = candidates[0]
    wanted = folder / "requirements.txt"
    lines = wanted.read_text(encoding="utf-8").splitlines() if wanted.is_file() else []
    requires = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return TaskFiles(f"{TASK_FOLDER}/{entry.name}{suffix}", files, requires)


def _of_module(name: str, suffix: str) -> TaskFiles:
    top = name.partition(".")[0]
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None:
        raise FlashError(f"{name!r} is neither a file, nor a folder, nor a module that is installed here")
    if spec.submodule_search_locations:
        return TaskFiles(f"{name}{suffix}", _below(Path(spec.submodule_search_locations[0]), f"lib/{top}"))
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise FlashError(f"the module {name!r} is no Python file that could travel")
    return TaskFiles(f"{name}{suffix}", {f"lib/{top}.py": Path(spec.origin)})


def _below(folder: Path, where: str) -> dict[str, Path]:
    return {
        str(PurePosixPath(where, path.relative_to(folder).as_posix())): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _LEFT_OUT & set(path.relative_to(folder).parts)
    }
