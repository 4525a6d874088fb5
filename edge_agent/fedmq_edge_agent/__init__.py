"""The edge agent: what runs on a device.

`core` decides (pure), `shell` does (MQTT, files, processes), `trainer` is the child process with PyTorch. The names
below run an agent; they are imported when they are asked for, so that the trainer does not load what it does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmq_edge_agent.shell.main import run_agent, run_agent_forever
    from fedmq_edge_agent.shell.settings import AgentSettings, TrainerSettings

__all__ = ["AgentSettings", "TrainerSettings", "run_agent", "run_agent_forever"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has that name
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("run"):
        from fedmq_edge_agent.shell import main as module  # noqa: PLC0415 - lazily, see above
    else:
        from fedmq_edge_agent.shell import settings as module  # type: ignore[no-redef]  # noqa: PLC0415
    return getattr(module, name)
