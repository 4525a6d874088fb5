"""The supervisor imports neither PyTorch nor NumPy; `test_with_trainer` measures its memory beside a real trainer."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import sys, asyncio
import fedmq_edge_agent
fedmq_edge_agent.run_agent_forever, fedmq_edge_agent.AgentSettings
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_the_supervisor_imports_neither_torch_nor_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "fedmq_edge_agent" in loaded
    assert not loaded & {"torch", "numpy", "zstandard", "click", "rich", "sklearn"}
