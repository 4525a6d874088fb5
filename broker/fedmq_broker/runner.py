"""Start a broker as a child process, know when it answers, and leave nothing behind.

    with start_broker(port=0) as broker:
        print(broker.url)

The child ends when this process does, even when it is killed; on other systems than Linux, Mosquitto does so only when
this process ends in an orderly way.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from fedmq_broker.child import Child, signals_set, tail
from fedmq_broker.errors import BrokerStartError
from fedmq_broker.mosquitto import LocalConfig, find_mosquitto, mosquitto_version, render_local_config
from fedmq_broker.probe import answers_mqtt, find_free_port, is_loopback, port_is_free, reachable_host
from fedmq_protocol.errors import UsageError

BrokerKind: TypeAlias = Literal["auto", "mosquitto", "embedded"]

_POLL_S = 0.02
_PORT_ATTEMPTS = 3  # a free port may be taken between finding and using it


@dataclass(frozen=True)
class _Plan:
    """What to run."""

    kind: Literal["mosquitto", "embedded"]
    command: list[str]
    describe: str


class RunningBroker:
    """A broker that we started. A context manager: leaving it stops the broker.

    Attributes:
        kind: `mosquitto` or `embedded`.
        url: how clients on this machine reach it.
        description: which program it is, for people.
        log_path: what it writes.
    """

    def __init__(self, plan: _Plan, child: Child, host: str, port: int, log_path: Path) -> None:
        self.kind = plan.kind
        self.description = plan.describe
        self.host = host
        self.port = port
        self.log_path = log_path
        self._child = child
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        host = reachable_host(self.host)
        return f"mqtt://[{host}]:{self.port}" if ":" in host else f"mqtt://{host}:{self.port}"

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child.exit_code is None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for it to end by itself; its exit code, or None when the time is over first."""
        self._child.ended.wait(timeout_s)
        return self._child.exit_code

    def stop(self, *, grace_s: float = 3.0) -> None:
        """Ask it to end, insist after `grace_s`. A second call does nothing."""
        self._child.stop(grace_s)
        self._cleanup.close()

    def log_tail(self) -> str:
        """The last lines of its log."""
        return tail(self.log_path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def start_broker(
    kind: BrokerKind = "auto",
    *,
    host: str = "127.0.0.1",
    port: int = 1883,
    state_dir: Path | None = None,
    start_timeout_s: float = 20.0,
) -> RunningBroker:
    """Start a broker and return once it answers MQTT. From asyncio: `await asyncio.to_thread(start_broker, ...)`.

    Args:
        kind: `auto` takes Mosquitto where it is installed, the embedded broker otherwise.
        host: address to listen on. There is no password: beyond loopback, anyone who reaches it may publish.
        port: 0 takes a free one.
        state_dir: for the configuration, the log and what Mosquitto saves; without it a temporary folder, removed at
            the end, and nothing is saved.
        start_timeout_s: limit for its first answer.

    Raises:
        UsageError: the port is taken, the address is not ours, or Mosquitto was asked for and is not there.
        BrokerStartError: it did not start; the text ends with its last words.
    """
    with contextlib.ExitStack() as undo:
        saves = state_dir is not None
        if state_dir is None:
            state_dir = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-broker-")))
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the broker's folder {str(state_dir)!r} cannot be made: {error}") from None
        for attempt in range(_PORT_ATTEMPTS):
            chosen = find_free_port(host) if port == 0 else port
            _require_port(host, chosen)
            try:
                broker = _start(
                    kind, host, chosen, state_dir.absolute(), saves=saves, timeout_s=start_timeout_s
                )
            except BrokerStartError:
                if port != 0 or attempt == _PORT_ATTEMPTS - 1 or port_is_free(host, chosen):
                    raise
            else:
                broker._cleanup = undo.pop_all()  # noqa: SLF001  # built here
                return broker
    raise AssertionError("the last attempt raises or returns")


def run_foreground(
    kind: BrokerKind = "auto",
    *,
    host: str = "127.0.0.1",
    port: int = 1883,
    state_dir: Path | None = None,
    echo: Callable[[str], None] = print,
) -> None:
    """Run a broker until Ctrl-C or SIGTERM: what `fedmq broker start` does.

    Raises:
        UsageError: see `start_broker`.
        BrokerStartError: it did not start, or ended by itself.
    """
    stop = threading.Event()
    with signals_set(stop), start_broker(kind, host=host, port=port, state_dir=state_dir) as broker:
        echo(f"{broker.description} listens at {broker.url}; its log is {broker.log_path}")
        if not is_loopback(host):
            echo(
                f"warning: {host} is reachable from other machines, and there is no password: use it in a network "
                "that you trust, and Mosquitto with TLS and passwords elsewhere"
            )
        if kind == "auto" and broker.kind == "embedded":
            echo("mosquitto is not installed; the embedded broker is for trying out, with tens of devices")
        echo("stop it with Ctrl-C")
        while not stop.is_set():
            # Short waits: on some systems a blocked wait does not see signals.
            code = broker.wait(0.2)
            if code is not None:
                raise BrokerStartError(f"the broker ended by itself (exit code {code}):\n{broker.log_tail()}")
        echo("stopping")


# ---------------------------------------------------------------------------------------- the child process


def _start(
    kind: BrokerKind, host: str, port: int, state_dir: Path, *, saves: bool, timeout_s: float
) -> RunningBroker:
    plan = _make_plan(kind, host, port, state_dir, saves=saves)
    log_path = state_dir / f"{plan.kind}.log"
    with log_path.open("wb") as log:
        child = Child(plan.command, log)
    try:
        _await_answer(child, plan, host, port, log_path, timeout_s)
    except BaseException:
        child.stop(1.0)
        raise
    return RunningBroker(plan, child, host, port, log_path)


def _make_plan(kind: BrokerKind, host: str, port: int, state_dir: Path, *, saves: bool) -> _Plan:
    program = None if kind == "embedded" else find_mosquitto()
    if program is not None:
        version = mosquitto_version(program)
        config_path = state_dir / "mosquitto.conf"
        config = LocalConfig(host=host, port=port, state_dir=state_dir if saves else None)
        config_path.write_text(render_local_config(config, version), encoding="utf-8")
        return _Plan(
            "mosquitto",
            [str(program), "-c", str(config_path)],
            "Mosquitto " + (".".join(map(str, version)) or "of unknown version"),
        )
    if kind == "mosquitto":
        raise UsageError(
            "mosquitto is not installed: apt-get install mosquitto, or brew install mosquitto, "
            "or use the embedded broker"
        )
    command = [sys.executable, "-m", "fedmq_broker.embedded", "--host", host, "--port", str(port)]
    return _Plan("embedded", [*command, "--parent-pid", str(os.getpid())], "the embedded broker")


def _await_answer(child: Child, plan: _Plan, host: str, port: int, log_path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not answers_mqtt(host, port):
        if child.ended.wait(_POLL_S):
            raise BrokerStartError(
                f"{plan.describe} ended at its start (exit code {child.exit_code}):\n{tail(log_path)}"
            )
        if time.monotonic() > deadline:
            raise BrokerStartError(
                f"{plan.describe} does not answer after {timeout_s:g} s:\n{tail(log_path)}"
            )


# ---------------------------------------------------------------------------------------- odds and ends of starting


def _require_port(host: str, port: int) -> None:
    where = f"port {port} on {host}"
    try:
        if port_is_free(host, port):
            return
    except PermissionError:
        raise UsageError(f"{where} needs root: choose a port above 1023") from None
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {where}: {error}") from None
    if answers_mqtt(host, port):
        raise UsageError(
            f"{where} is taken by a broker that runs already: use that one (mqtt://{reachable_host(host)}:{port}), "
            "or choose another port (0 finds a free one)"
        )
    raise UsageError(f"{where} is taken by another program: choose another port (0 finds a free one)")
