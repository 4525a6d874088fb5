"""Run in a network namespace of its own by `test_firewall`: load the rules, be a server and two addresses, and report.

unshare -n python behind_firewall.py RULES PORT        prints one JSON object
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time

LEAST_BYTES = 5 << 20
AT_ONCE = 20
"""So many new connections are answered, if by a refusal; what is beyond gets no answer at all."""


def connect(port: int, source: str, *, timeout_s: float = 10.0) -> socket.socket | None:
    """A connection from an address; None where the kernel does not let it through."""
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=timeout_s, source_address=(source, 0))
    except OSError:
        return None


def main() -> None:
    rules, port = sys.argv[1], int(sys.argv[2])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    server = socket.create_server(("127.0.0.1", port), backlog=4_096)
    for _ in range(2):  # a second time replaces the first
        subprocess.run(["nft", "-f", rules], check=True)
    found: dict[str, float] = {}
    patience = [10.0] * AT_ONCE + [0.05] * 40
    held = [sock for each in patience if (sock := connect(port, "127.0.0.2", timeout_s=each))]
    found["held"] = len(held)
    other = connect(port, "127.0.0.3")
    found["other"] = other is not None
    for sock in held:
        sock.close()
    assert other is not None
    accepted = [server.accept()[0] for _ in range(len(held) + 1)]
    receiver = accepted[-1]
    other.setblocking(False)  # noqa: FBT003
    receiver.setblocking(False)  # noqa: FBT003
    began, got, piece = time.monotonic(), 0, bytes(65_536)
    while (passed := time.monotonic() - began) < 2.0 or (got < LEAST_BYTES and passed < 30.0):
        with contextlib.suppress(OSError):
            other.send(piece)
        with contextlib.suppress(OSError):
            got += len(receiver.recv(1 << 20))
    found["bytes"], found["seconds"] = got, passed
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
