"""Telling systemd how we are: ready, in which words, still turning, about to end (sd_notify(3)).

The protocol is one datagram of `NAME=value` lines to a Unix socket. That is less than any package for it.
Without systemd nothing is said, and nothing costs anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

_MAX_WORDS = 512


class Notifier:
    """One process's line to its service manager.

    Args:
        environ: where the manager says how to reach it. What it says is taken out: it is not for child processes, whose
            word would be taken for ours.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._words = ""
        self._address = ""
        self.watchdog_s: float | None = None
        """A ping is expected at least so often, in seconds; None: none is."""
        if not address.startswith(("/", "@")):
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        if usec.isdecimal() and int(usec) > 0 and pid in {"", str(os.getpid())}:
            self.watchdog_s = int(usec) / 1e6

    def ready(self) -> None:
        """Work has begun."""
        self._say("READY=1")

    def words(self, text: str) -> None:
        """What we do or wait for, for `systemctl status`; said again only where it differs."""
        text = " ".join(text.split())[:_MAX_WORDS]
        if text != self._words:
            self._words = text
            self._say(f"STATUS={text}")

    def alive(self) -> None:
        """The loop turns."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    def _say(self, line: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line_out:
            line_out.settimeout(0)  # a manager that does not listen is no reason to wait, or to stop
            line_out.sendto(line.encode(), self._address)
