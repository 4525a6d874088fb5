"""Turning an exception in a user's code into one line that says what, and where: file and line."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmq_edge_agent.trainer.errors import TrainerError

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OURS = str(Path(__file__).parent)
_LINE_CHARS = 80


@contextmanager
def blaming(
    code: str, doing: str, **codes: type[BaseException] | tuple[type[BaseException], ...]
) -> Iterator[None]:
    """Run a user's code; whatever it raises becomes a `TrainerError` of one line.

    Args:
        code: the error's code.
        doing: what was going on, for the line: "loading the data".
        codes: other codes for certain exceptions, with `_` for `-`: `no_data=FileNotFoundError`.

    Raises:
        TrainerError: the code raised, or tried to leave the process.
    """
    try:
        yield
    except TrainerError:
        raise
    except (Exception, SystemExit) as error:
        special = [name.replace("_", "-") for name, kinds in codes.items() if isinstance(error, kinds)]
        raise TrainerError(special[0] if special else code, f"{doing}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """`ValueError: what it says (/path/task.py:12)`."""
    if isinstance(error, SyntaxError):
        line = f': "{error.text.strip()[:_LINE_CHARS]}"' if error.text and error.text.strip() else ""
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno}{line})"
    text = str(error).strip().partition("\n")[0]
    name = type(error).__name__
    said = f"{name}: {text}" if text else name
    if isinstance(error, ModuleNotFoundError):
        said += f"; install {error.name} where the trainer runs"
    place = _place(error)
    return f"{said} ({place})" if place else said


def _place(error: BaseException) -> str:
    """The innermost line that is the user's: not of an installed package, not of the trainer itself."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")
    ]
    users = [frame for frame in frames if not frame.filename.startswith((*_INSTALLED, _OURS))]
    if not users:
        users = [frame for frame in frames if not frame.filename.startswith(_OURS)]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else ""
