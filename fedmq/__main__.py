"""`python -m fedmq` is the command `fedmq`."""

from __future__ import annotations

from fedmq.cli import main

if __name__ == "__main__":
    main()
