"""Finding a user's task: in a file, `/home/pi/digits.py`, or in an installed package, `package.module:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fedmq_edge_agent.trainer.blame import blaming
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.task import Task

DEFAULT_NAME = "task"


def load_task(where: str) -> Task:
    """Import the task.

    Args:
        where: the path of a .py file, or an importable `package.module`, either with `:name` behind it where the task
            is not called `task`.

    Raises:
        TrainerError: `task-error`; there is no such file or module, it raises, or it defines no task.
    """
    place, name = _split(where)
    is_file = place.endswith(".py") or "/" in place
    module = _import_file(Path(place)) if is_file else _import_module(place)
    return _find(module, name, where=place)


def _split(where: str) -> tuple[str, str | None]:
    place, separator, name = where.rpartition(":")
    return (place, name) if separator and name.isidentifier() else (where, None)


def _import_file(path: Path) -> ModuleType:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise TrainerError("task-error", f"there is no task file {path}")
    # Files beside the task can be imported by it, as when Python runs it as a program.
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"fedmq_task_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TrainerError(
            "task-error", f"{path} is not a Python file; a task is a .py file or package.module"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling in the user's code look it up
    try:
        with blaming("task-error", f"loading {path.name}"):
            spec.loader.exec_module(module)
    except TrainerError:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise TrainerError("task-error", f"{name!r} is neither a .py file nor an importable package.module")
    with blaming("task-error", f"importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):  # it, or what it lies in
                raise TrainerError("task-error", f"no task file or module called {name}") from None
            raise


def _find(module: ModuleType, name: str | None, *, where: str) -> Task:
    found = getattr(module, name or DEFAULT_NAME, None)
    if isinstance(found, Task):
        return found
    if name is not None:
        raise TrainerError("task-error", f"{where} has no fedmq Task called {name}")
    tasks = {id(value): value for value in vars(module).values() if isinstance(value, Task)}
    if len(tasks) == 1:
        return tasks.popitem()[1]
    if tasks:
        raise TrainerError(
            "task-error", f"{where} defines {len(tasks)} tasks; call one `task`, or name it: {where}:name"
        )
    raise TrainerError(
        "task-error", f"{where} defines no task; add: task = Task(name=…, model=…, load_data=…)"
    )
