"""What a trainer child does with itself as a process: it serves one socket, and never outlives the other end."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import select
import signal
import socket
import sys
import threading
from pathlib import Path

from fedmq_edge_agent.trainer import channel

_STDOUT, _STDERR = 1, 2
_OOM_SCORE = 800
"""Of -1000 to 1000. When memory runs out the kernel ends whoever has most of both: a trainer, and not the agent."""


def serve(peer: socket.socket) -> None:
    """Answer requests on `peer` until it closes.

    Raises:
        ChannelError: what came is no request.
    """
    from fedmq_edge_agent.trainer.host import Host  # noqa: PLC0415 - with PyTorch, when the rest is set up

    host = Host()
    while (request := channel.read(peer)) is not None:
        peer.sendall(channel.pack(host.handle(request)))


def settle(peer: socket.socket) -> None:
    """Set up this process as a trainer: quiet, deaf to Ctrl-C, and gone as soon as the other end is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides when to stop; it closes the channel
    sys.stdout.flush()
    os.dup2(_STDERR, _STDOUT)  # a task's prints must not mix with what the command prints
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # `_leave_with` ends us without a flush
    threading.Thread(target=_leave_with, args=(peer,), name="peer-watch", daemon=True).start()


def _leave_with(peer: socket.socket) -> None:
    """End the process when the other end closes or dies, in the middle of a training too."""
    watch = select.poll()
    watch.register(peer, 0)  # a hang-up is always reported
    watch.poll()
    os._exit(0)


def stand_back(nice: int) -> None:
    """Let others go first: for the processor and, by the kernel's rule, the disk; and be the first to go for memory.

    Args:
        nice: 0 to 19. From 1 on the scheduler also knows that this is no dialogue (SCHED_BATCH).
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")
    if nice:
        os.nice(nice)
        with contextlib.suppress(AttributeError, OSError):  # only Linux has it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def use_threads(count: int) -> None:
    """Let PyTorch, and whatever else computes, use so many threads."""
    for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(pool, str(count))
    import torch  # noqa: PLC0415 - after the variables above, which it reads once

    torch.set_num_threads(count)


def spare_cores() -> int:
    """All cores but one, at least one.

    Threads that share the work of an operation wait for the slowest of them. Where another process takes one's core
    away, small operations take fifty times as long; with a core to spare that does not happen.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) - 1)


def peak_bytes() -> int:
    """The most memory that this process has had resident so far, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
