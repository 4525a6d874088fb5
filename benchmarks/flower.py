"""Flower in an environment of its own, doing the demo's work behind a counting proxy. Used by vs_flower.py.

Two deployments: superlink and supernodes, which Flower recommends, and its older server in memory, which it calls
deprecated. Telemetry, update checks and run-time installs are off; everything listens on loopback alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from benchmarks.in_process import first_weights
from benchmarks.proxy import CountingProxy
from fedmq.demo.options import DemoOptions
from fedmq.tasks import digits
from fedmq_edge_agent.trainer.context import DeviceContext
from fedmq_edge_agent.trainer.opened import open_task

VERSION: Final = "1.41.0"
DEVICES: Final = 10
_APP: Final = Path(__file__).parent / "flower_app"
_CONSTRAINTS: Final = Path(__file__).parent.parent / "constraints.txt"
_START_WITHIN_S: Final = 180.0
_ROUND_WITHIN_S: Final = 300.0
_POLL_S: Final = 0.02
_QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class FlowerRound:
    """What stood at the end of a round, the evaluation at the server included.

    Attributes:
        number: 0 before the first round.
        accuracy: on the held-out digits.
        at: seconds since the epoch.
        up: bytes that the devices had sent by then, all together.
        down: bytes that they had been sent.
    """

    number: int
    accuracy: float
    at: float
    up: int
    down: int


def environment(version: str = VERSION) -> Path:
    """The folder of programs of Flower's own environment, which is made at the first call: a minute or two.

    Raises:
        CalledProcessError: it cannot be installed.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedmq"
    folder = cache / f"flower-{version}"
    programs = folder / "bin"
    if not (programs / "flower-superlink").exists():
        print(f"installing flwr {version} and PyTorch into {folder}", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)  # noqa: S603  our own
        install = [str(programs / "pip"), "install", "--quiet", "--constraint", str(_CONSTRAINTS)]
        subprocess.run([*install, f"flwr=={version}", "torch", "numpy"], check=True)  # noqa: S603  likewise
    return programs


def write_work(path: Path, partition: str, seed: int) -> None:
    """Write the demo's data as its devices have them, and its first weights."""
    options = DemoOptions(partition=partition, seed=seed, devices=DEVICES)
    arrays = {"seed": np.array(seed)}
    for number in range(DEVICES):
        context = DeviceContext.of(options.data_settings(number))
        (arrays[f"x_{number}"], arrays[f"y_{number}"]), _ = digits.table().for_device(context)
    arrays["test_x"], arrays["test_y"] = digits.table().held_out()
    central = open_task(options.task_module, {}, "coordinator")
    weights, start = first_weights(central, seed), 0
    for entry in central.schema.vector_entries():
        arrays[f"first_{entry.name}"] = weights[start : start + entry.size].reshape(entry.shape)
        start += entry.size
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its stub takes the names for flags


def deployed(partition: str, seed: int, rounds: int) -> list[FlowerRound]:
    """Superlink, ten supernodes and the app.

    Raises:
        RuntimeError: it did not get that far; the text is the end of the log.
    """
    programs = environment()
    with tempfile.TemporaryDirectory(prefix="fedmq-flower-") as name, _Processes(Path(name)) as processes:
        folder = Path(name)
        work, journal = folder / "work.npz", folder / "journal"
        write_work(work, partition, seed)
        port = _free_port()
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        processes.start(*(programs / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port))
        _until_open(port, processes)
        proxy = CountingProxy(port)
        proxy.start()
        for device in range(DEVICES):
            processes.start(
                *(programs / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{proxy.port}"),
                *("--host", "127.0.0.1", "--port", _free_port()),
                *("--node-config", f"partition-id={device} num-partitions={DEVICES}"),
            )
        given = f'data="{work}" journal="{journal}" rounds={rounds}'
        processes.start(programs / "flwr", "run", _APP, "here", "--run-config", given)
        return _follow(journal, rounds, proxy, processes)


def in_memory(partition: str, seed: int, rounds: int) -> list[FlowerRound]:
    """The deprecated server, with ten clients.

    Raises:
        RuntimeError: it did not get that far; the text is the end of the log.
    """
    python = environment() / "python"
    with tempfile.TemporaryDirectory(prefix="fedmq-flower-") as name, _Processes(Path(name)) as processes:
        folder = Path(name)
        work, journal = folder / "work.npz", folder / "journal"
        write_work(work, partition, seed)
        port = _free_port()
        script = _APP / "in_memory.py"
        processes.start(python, script, "server", f"127.0.0.1:{port}", work, journal, rounds)
        _until_open(port, processes)
        proxy = CountingProxy(port)
        proxy.start()
        for device in range(DEVICES):
            processes.start(python, script, "client", f"127.0.0.1:{proxy.port}", work, device)
        return _follow(journal, rounds, proxy, processes)


class _Processes:
    """Processes that are ended together, each with all that it has started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = (folder / "log").open("wb")
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            until = time.monotonic() + 5.0
            for process in self._running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, until - time.monotonic()))
        self._log.close()

    def start(self, *command: str | Path | int) -> None:
        process = subprocess.Popen(  # noqa: S603  our own command line
            [str(part) for part in command],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ
            | _QUIET
            | {"FLWR_HOME": str(self._folder), "PYTHONPATH": ""}
            | {"PATH": f"{environment()}{os.pathsep}{os.environ['PATH']}"},
        )
        self._running.append(process)

    @property
    def all_run(self) -> bool:
        return all(process.poll() is None for process in self._running)

    def log_tail(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-3000:]


def _follow(journal: Path, rounds: int, proxy: CountingProxy, processes: _Processes) -> list[FlowerRound]:
    seen: list[FlowerRound] = []
    until = time.monotonic() + _START_WITHIN_S
    while not seen or seen[-1].number < rounds:
        for line in _new_lines(journal, len(seen)):
            up, down = proxy.totals()
            seen.append(FlowerRound(line["round"], line["accuracy"], line["at"], up, down))
            until = time.monotonic() + _ROUND_WITHIN_S
        if time.monotonic() > until:
            raise RuntimeError(f"Flower came to {len(seen)} rounds and no further:\n{processes.log_tail()}")
        time.sleep(_POLL_S)
    return seen


def _new_lines(journal: Path, seen: int) -> Iterator[dict[str, Any]]:
    if journal.exists():
        for line in journal.read_text().splitlines(keepends=True)[seen:]:
            if line.endswith("\n"):
                yield json.loads(line)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _until_open(port: int, processes: _Processes) -> None:
    until = time.monotonic() + _START_WITHIN_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        if time.monotonic() > until or not processes.all_run:
            raise RuntimeError(f"nothing listens on port {port}:\n{processes.log_tail()}")
        time.sleep(0.1)
