"""Processes that end with the one that started them, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1  # prctl(2)
_WATCH_S = 1.0


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; elsewhere than on Linux a thread looks now and then.

    Call it on the main thread, early: where the parent is gone by now, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent-watch").start()
    if os.getppid() != parent:  # it died in between, and nobody will tell us
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    pause = threading.Event()
    while os.getppid() == parent:
        pause.wait(_WATCH_S)
    os.kill(os.getpid(), signal.SIGKILL)
