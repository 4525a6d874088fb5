"""`python -m fedmq.demo.child PARENT MODULE …`: run a module as `python -m MODULE …` does, and end with the parent.

The tie is made before anything is imported that takes long: PyTorch's import must not outlive a demo that was killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from fedmq.demo.lineage import end_with


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` as a child of this process."""
    return [sys.executable, "-m", "fedmq.demo.child", str(os.getpid()), module, *arguments]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends its children in order
    end_with(int(sys.argv[1]))
    sys.argv[:] = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
