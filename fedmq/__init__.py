"""The front door: the command, and the few names that a user imports.

    from fedmq import Task

Names are looked up when they are used, so that `import fedmq` brings in neither PyTorch nor NumPy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmq.partitioners import PARTITIONERS, partition
    from fedmq_edge_agent.trainer.context import DeviceContext
    from fedmq_edge_agent.trainer.task import Task
    from fedmq_protocol.messages import TrainSettings

    __version__: str

__all__ = ["PARTITIONERS", "DeviceContext", "Task", "TrainSettings", "__version__", "partition"]

_HOMES = {
    "DeviceContext": "fedmq_edge_agent.trainer.context",
    "PARTITIONERS": "fedmq.partitioners",
    "Task": "fedmq_edge_agent.trainer.task",
    "TrainSettings": "fedmq_protocol.messages",
    "partition": "fedmq.partitioners",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name == "__version__":
        return importlib.metadata.version("fedmq")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
