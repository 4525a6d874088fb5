"""`python -m fedmq_edge_agent.trainer.nursery --socket PATH`: trainer children by the dozen, PyTorch imported once.

For many devices on one machine (the demo, the simulator, tests). The nursery imports PyTorch and the task, then forks
a child for each connection to its socket; the child serves that connection as a spawned one would. Connections are
accepted only when the imports are done, so whoever connects early simply waits.

The nursery ends with its parent, and its children end with it or with their own supervisor, whichever goes first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

from fedmq_edge_agent.trainer.channel import ChannelError
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.process import serve, settle, use_threads

_CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"  # macOS's own frameworks do not survive a fork
_PARENT_CHECK_S = 1.0
_PR_SET_PDEATHSIG = 1
_BACKLOG = 1024


def main() -> int:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser(prog="python -m fedmq_edge_agent.trainer.nursery", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="path of the Unix socket to listen on")
    parser.add_argument("--preload", help="a task to import before the first child")
    parser.add_argument("--parent", type=int, help="process id of who starts this; the nursery ends with it")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch in each child")
    options = parser.parse_args()
    parent = os.getppid() if options.parent is None else options.parent
    if os.getppid() != parent:
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = _listen(options.socket)
    try:
        _prepare(options.preload)
        _serve(listener, parent, options.threads)
    finally:
        options.socket.unlink(missing_ok=True)
    return 0


def _listen(path: Path) -> socket.socket:
    """Listen where only this user may connect."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def _prepare(task: str | None) -> None:
    """Import what every child needs, in one thread: a pool of threads would not survive the fork."""
    if not _CAN_FORK:
        return
    use_threads(1)
    from fedmq_edge_agent.trainer import warming  # noqa: PLC0415 - imports PyTorch

    try:
        warming.warm(task)
    except TrainerError as error:  # each child says so again, to its supervisor
        sys.stderr.write(f"nursery: {error}\n")
    gc.collect()
    gc.freeze()  # the children share these pages as long as nobody writes to them


def _serve(listener: socket.socket, parent: int, threads: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that end leave no zombies
    watch = select.poll()
    watch.register(listener, select.POLLIN)
    with contextlib.suppress(AttributeError, OSError):  # only Linux has it; elsewhere the parent is asked for
        watch.register(os.pidfd_open(parent), select.POLLIN)
    while os.getppid() == parent:
        for descriptor, _ in watch.poll(_PARENT_CHECK_S * 1000):
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                _start_child(listener, connection, threads)


def _start_child(listener: socket.socket, connection: socket.socket, threads: int) -> None:
    with connection:
        if not _CAN_FORK:
            descriptor = str(connection.fileno())
            command = [
                sys.executable,
                "-m",
                "fedmq_edge_agent.trainer",
                "--fd",
                descriptor,
                "--threads",
                str(threads),
            ]
            subprocess.Popen(command, pass_fds=[connection.fileno()])  # noqa: S603 - our own module
            return
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of threads; `_prepare` sees to it that none is at work
            child = os.fork()
        if child == 0:
            _live(listener, connection, threads)


def _live(listener: socket.socket, connection: socket.socket, threads: int) -> None:
    """The whole life of a child."""
    status = 1
    try:
        nursery = os.getppid()
        _end_with_parent()
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        settle(connection)
        if threads > 1:
            use_threads(threads)
        if os.getppid() == nursery:
            serve(connection)
        status = 0
    except (ChannelError, BrokenPipeError, ConnectionResetError) as error:
        sys.stderr.write(f"trainer: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _end_with_parent() -> None:
    """Let the system kill this process when the nursery ends (Linux; elsewhere the closed connection does)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
