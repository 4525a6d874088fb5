"""`python -m fedmq_edge_agent.trainer --fd N`: a trainer child on an inherited socket."""

from __future__ import annotations

import argparse
import socket
import sys

from fedmq_edge_agent.trainer.channel import ChannelError
from fedmq_edge_agent.trainer.process import serve, settle, spare_cores, stand_back, use_threads


def main() -> None:
    """Serve the socket until its other end closes."""
    parser = argparse.ArgumentParser(prog="python -m fedmq_edge_agent.trainer", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket to the supervisor")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch; 0: all cores but one")
    parser.add_argument("--nice", type=int, default=0, help="how far to stand back, 0 to 19")
    options = parser.parse_args()
    stand_back(options.nice)
    with socket.socket(fileno=options.fd) as peer:
        settle(peer)
        use_threads(options.threads or spare_cores())
        try:
            serve(peer)
        except (ChannelError, BrokenPipeError, ConnectionResetError) as error:
            sys.exit(f"trainer: {error}")


if __name__ == "__main__":
    main()
