"""Turn into another program that ends when its parent does. Run as a script, by path: it imports nothing of ours.

    python guard.py PARENT_PID PROGRAM ARGUMENT...

Linux sends the signal when the thread that started us ends, so that thread must live as long as the child is wanted.
Elsewhere there is no such signal, and the program outlives a parent that is killed.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent_pid, program, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent_pid):
        sys.exit("the parent has gone already")
    os.execv(program, [program, *arguments])  # noqa: S606  # that is the purpose
