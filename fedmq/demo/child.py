"""`python -m fedmq.demo.child PARENT VERB…`: the command `fedmq VERB…`, as a process that ends with its parent."""

from __future__ import annotations

import signal
import sys

from fedmq.demo.lineage import end_with

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends its children in order
    end_with(int(sys.argv[1]))
    from fedmq.cli import run

    sys.exit(run(sys.argv[2:]))
