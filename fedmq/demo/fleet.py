"""Many agents on one machine: one light process imports the supervisor once and forks a process for each device.

It takes a JSON list of agents' settings from a file, and commands, a JSON object a line, from stdin:

    {"kill": "dev-3"}       SIGKILL, as a power cut would

and says on stdout what happens:

    {"started": {"dev-1": 4711, …}}
    {"killed": "dev-3"}     when it is over with it
    {"ended": "dev-2", "code": 1}

When stdin closes or SIGTERM comes, every agent is asked to end, then made to.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fedmq.demo.lineage import end_with

END_WITHIN_S: Final = 1.8
_LINE_BYTES: Final = 65_536
_OURS: Final = frozenset({signal.SIGTERM, signal.SIGCHLD})


class Fleet:
    """The agents of this process."""

    def __init__(self, settings: list[Any], serve: Callable[[Any], int], folder: Path) -> None:
        self._settings = settings
        self._serve = serve
        self._folder = folder
        self._devices: dict[int, str] = {}
        self._killed: set[int] = set()
        self._commands = bytearray()

    def start(self) -> None:
        """Fork an agent for each device."""
        gc.collect()
        gc.freeze()  # what is shared stays shared: the collector does not touch it in the children
        launcher = os.getpid()
        # What is sent to a child before it has handlers of its own waits for it, and is not lost on ours.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        try:
            for settings in self._settings:
                pid = os.fork()
                if pid == 0:
                    self._become_agent(settings, launcher)
                self._devices[pid] = settings.id
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        _say({"started": {device: pid for pid, device in self._devices.items()}})

    def watch(self, wakeup: int) -> None:
        """Carry out commands and report ends, until told to stop or nobody is left to tell us."""
        os.set_blocking(sys.stdin.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            selector.register(wakeup, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == wakeup:
                        if signal.SIGTERM in os.read(wakeup, _LINE_BYTES):
                            return
                        self._reap()
                    elif not self._obey(os.read(key.fd, _LINE_BYTES)):
                        return

    def end(self) -> None:
        """Ask all agents to end, and kill those that do not."""
        self._signal_all(signal.SIGTERM)
        until = time.monotonic() + END_WITHIN_S
        while self._devices and time.monotonic() < until:
            self._reap()
            time.sleep(0.01)
        self._signal_all(signal.SIGKILL)
        for pid in self._devices:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._devices:  # not waited for yet, so the ids are theirs
            os.kill(pid, number)

    def _become_agent(self, settings: Any, launcher: int) -> None:  # noqa: ANN401 - AgentSettings, imported late
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _OURS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
            end_with(launcher)
            with (self._folder / f"{settings.id}.log").open("ab") as log:
                for stream in (1, 2):
                    os.dup2(log.fileno(), stream)
            with Path(os.devnull).open("rb") as nothing:
                os.dup2(nothing.fileno(), 0)
            code = self._serve(settings)
        except BaseException as error:  # noqa: BLE001 - nothing may unwind into the launcher's frames
            sys.stderr.write(f"fedmq: {type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for pid in list(self._devices):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                device = self._devices.pop(pid)
                if pid in self._killed:
                    _say({"killed": device})
                else:
                    _say({"ended": device, "code": os.waitstatus_to_exitcode(status)})

    def _obey(self, data: bytes) -> bool:
        self._commands += data
        *lines, rest = bytes(self._commands).split(b"\n")
        self._commands[:] = rest
        for line in lines:
            wanted = json.loads(line)["kill"]
            for pid, device in self._devices.items():
                if device == wanted:
                    self._killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
        return bool(data)


def _say(message: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Serve one fleet: FOLDER, which has `devices.json`."""
    (folder,) = arguments
    wakeup, notify = os.pipe()
    for end in (wakeup, notify):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(notify)
    for number in _OURS:
        signal.signal(number, lambda _number, _frame: None)  # `wakeup` tells of it
    from fedmq.demo.agents import read_spec, serve

    try:
        fleet = Fleet(read_spec(Path(folder) / "devices.json"), serve, Path(folder))
    except ValueError as error:
        sys.stderr.write(f"fedmq: a device's settings do not hold: {' '.join(str(error).split())}\n")
        return 1
    try:
        fleet.start()
        fleet.watch(wakeup)
    finally:
        fleet.end()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
