"""What a verb needs beyond the base install, said in one line where it is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from fedmq_protocol.errors import UsageError

_OURS = ("fedmq", "fedmq_protocol", "fedmq_broker", "fedmq_coordinator", "fedmq_edge_agent")


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Guard imports that come with an extra.

    Raises:
        UsageError: one is missing; names the install that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _OURS:
            raise
        raise UsageError(f"this needs `pip install fedmq[{extra}]` ({missing} is missing)") from None


def require(module: str, extra: str) -> None:
    """Look whether a module is there that a child process will need, without importing it here.

    Raises:
        UsageError: it is not; names the install that brings it.
    """
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"this needs `pip install fedmq[{extra}]` ({module} is missing)")
