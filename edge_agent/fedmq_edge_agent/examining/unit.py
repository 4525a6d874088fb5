"""What systemd says of the agent's service, where that is how the agent of this folder is run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

UNIT: Final = "fedmq-agent.service"
_PROPERTIES: Final = ("LoadState", "ActiveState", "SubState", "Result", "NRestarts", "WorkingDirectory")
_PATIENCE_S: Final = 3.0


def service_of(state_dir: Path) -> dict[str, str]:
    """The service's properties; empty where there is no such service, or it is for another state folder."""
    try:
        shown = subprocess.run(  # noqa: S603 - words of our own
            ["systemctl", "show", UNIT, f"--property={','.join(_PROPERTIES)}"],  # noqa: S607 - the system's own
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    said = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    ours = said.get("LoadState") == "loaded" and Path(said.get("WorkingDirectory", "")) == state_dir
    return said if ours else {}


def described(service: dict[str, str]) -> str:
    """How a service that does not run stands."""
    state = f"{service.get('ActiveState', '?')} ({service.get('SubState', '?')})"
    result, restarts = service.get("Result", "success"), service.get("NRestarts", "0")
    why = "" if result == "success" else f", its last end: {result}"
    again = "" if restarts in {"", "0"} else f", restarted {restarts} times"
    return f"systemd calls its service {state}{why}{again}"
