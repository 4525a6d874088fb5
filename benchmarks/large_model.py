"""A model of 400 MB in a federation on one machine: what each process has resident, and whether anybody has to wait.

    make bench BENCH=large_model ARGS="--json FILE"
    make bench BENCH=large_model ARGS="--parameters 2_000_000 --devices 3"

Mosquitto, a coordinator and ten agents, each with a trainer of its own, as their users start them. The model
(`large_task.py`: training adds a seeded change, and costs next to nothing) goes down to all devices as an int8
snapshot; each trains, and its update of 1 % of the parameters comes back. One version is made of them and goes down, as
often as `--rounds` says. Meanwhile memory is sampled, and the coordinator's HTTP API is asked ten times a second.
Agents run at a lower priority, as on machines of their own.

The bounds, for a model of 400 MB (PyTorch alone is larger than a small one): 3 times the model at the coordinator, 2.5
times an agent (supervisor and trainer together), an answer of the API within half a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import large_task
from benchmarks.figures import machine
from benchmarks.process_memory import Memory, Peaks, below, high_water
from fedmq_broker.runner import start_broker
from fedmq_coordinator.shell.client import Client, is_starting
from fedmq_protocol.errors import FedmqError

TASK: Final = Path(large_task.__file__)
COORDINATOR_TIMES: Final = 3.0
AGENT_TIMES: Final = 2.5
ANSWER_S: Final = 0.5
_ASK_EVERY_S: Final = 0.1
_NICE: Final = 10
"""Agents stand for machines of their own: ten of them must not take the processor from the coordinator."""


@dataclass
class Options:
    """What is run."""

    parameters: int = 100_000_000
    devices: int = 10
    rounds: int = 2
    density: float = 0.01
    timeout_s: float = 3600.0
    folder: Path | None = None


@dataclass
class Result:
    """What was seen.

    Attributes:
        model_bytes: of the parameters in float32.
        peaks: by kind of process; of the agents, the largest.
        high_water: the same, by the kernel's own mark of each process, added up where there are several.
        seconds: from the order of the run to its end.
        first_version_s: from the order of the run until its first version was published.
        accepted: updates.
        sent_by_devices: bytes, by their own count; what came after the last update is not in it.
        received_by_devices: likewise.
        answers_s: the API's answers while the run went on.
        late_s: by how much a bare timer was late at the most.
    """

    model_bytes: int
    peaks: dict[str, Memory]
    high_water: dict[str, int]
    seconds: float
    first_version_s: float
    accepted: int
    sent_by_devices: int
    received_by_devices: int
    answers_s: list[float]
    late_s: float


@dataclass
class _Asker(threading.Thread):
    """Asks the API, over and over, and notes how long the answer takes."""

    state_dir: Path
    answers_s: list[float] = field(default_factory=list)
    late_s: float = 0.0
    """By so much a bare timer beside it was late at the most: what this machine's scheduler does to anybody."""
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        with Client(self.state_dir) as client:
            due = time.perf_counter() + _ASK_EVERY_S
            while not self._ended.wait(_ASK_EVERY_S):
                began = time.perf_counter()
                self.late_s = max(self.late_s, began - due)
                client.status()
                self.answers_s.append(time.perf_counter() - began)
                due = time.perf_counter() + _ASK_EVERY_S

    def stop(self) -> None:
        self._ended.set()
        self.join()


class Federation:
    """The processes, each with its log in `folder`."""

    def __init__(self, options: Options, folder: Path, broker_url: str, broker_pid: int) -> None:
        self._options = options
        self._folder = folder
        self._broker_pid = broker_pid
        self.state_dir = folder / "coordinator"
        self._environment = os.environ | {
            large_task.VARIABLE: str(options.parameters),
            "FEDMQ_BROKER__URL": broker_url,
            "FEDMQ_FEDERATION__NAME": "large",
            "FEDMQ_TRAINER__THREADS": "1",
            "FEDMQ_TRAINER__MODEL_TIMEOUT_S": "600",
        }
        self._config = folder / "empty.toml"
        self._config.write_text("")
        self.coordinator = self._start(
            "coordinator", "--state-dir", str(self.state_dir), "--listen", "127.0.0.1:0"
        )
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def start_agents(self) -> None:
        for number in range(self._options.devices):
            name = f"dev-{number}"
            place = str(self._folder / name)
            self.agents[name] = self._start(
                "agent", "--id", name, "--task", str(TASK), "--state-dir", place, log=name
            )
            psutil.Process(self.agents[name].pid).nice(min(19, os.nice(0) + _NICE))

    def _start(self, what: str, *arguments: str, log: str | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fedmq", what, "start", "--config", str(self._config), *arguments]
        with (self._folder / f"{log or what}.log").open("wb") as said:
            return subprocess.Popen(  # noqa: S603  our own command line
                command, env=self._environment, stdout=said, stderr=subprocess.STDOUT
            )

    def processes(self) -> dict[str, list[int]]:
        """All processes, by what they are."""
        groups = {
            "broker": [self._broker_pid],
            "coordinator": [self.coordinator.pid],
            "with model host": [self.coordinator.pid, *below(self.coordinator.pid)],
        }
        for name, agent in self.agents.items():
            children = below(agent.pid)
            groups[name] = [agent.pid, *children]
            groups[f"{name} supervisor"] = [agent.pid]
            groups[f"{name} trainer"] = children
        return groups

    def check(self) -> None:
        """Raises: RuntimeError: one of the processes has ended; the text is what it said last."""
        for name, process in {"coordinator": self.coordinator, **self.agents}.items():
            if process.poll() is not None:
                said = (self._folder / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{said[-3000:]}")

    def stop(self) -> None:
        processes = [*self.agents.values(), self.coordinator]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def federation(options: Options) -> Iterator[Federation]:
    """A broker, a coordinator and its agents, in a folder that goes with them."""
    with tempfile.TemporaryDirectory(prefix="fedmq-large-", dir=options.folder) as name:
        folder = Path(name)
        broker = start_broker("mosquitto", port=0, state_dir=folder / "mosquitto")
        try:
            running = Federation(options, folder, broker.url, broker.pid)
            try:
                _until(
                    lambda: not is_starting(running.state_dir) and _answers(running.state_dir), running, 60
                )
                yield running
            finally:
                running.stop()
        finally:
            broker.stop()


def _answers(state_dir: Path) -> bool:
    try:
        with Client(state_dir) as client:
            client.status()
    except FedmqError:
        return False
    return True


def _until(true: Any, running: Federation, timeout_s: float) -> None:  # noqa: ANN401  # any test without arguments
    end = time.monotonic() + timeout_s
    while not true():
        running.check()
        if time.monotonic() > end:
            raise RuntimeError(f"not within {timeout_s} s; the logs are those of {running.state_dir.parent}")
        time.sleep(0.05)


def measure(options: Options) -> Result:
    """One federation from its start to the end of its run."""
    with federation(options) as running:
        running.start_agents()
        with Client(running.state_dir) as client:
            _until(lambda: len(client.devices()) == options.devices, running, 120)
            peaks = Peaks(running.processes)
            peaks.start()
            began = time.monotonic()
            run = client.start_run(str(TASK), settings=_settings(options))
            asker = _Asker(running.state_dir)
            asker.start()
            _until(lambda: client.run(run).version >= 0, running, options.timeout_s)
            first_version_s = time.monotonic() - began
            _until(lambda: client.run(run).state == "finished", running, options.timeout_s)
            seconds = time.monotonic() - began
            asker.stop()
            peaks.stop()
            report = client.report(run)
            groups = running.processes()
            marks = {name: sum(map(high_water, pids)) for name, pids in groups.items()}
        return Result(
            model_bytes=4 * report.num_parameters,
            peaks=_largest(peaks.peaks),
            high_water={kind: max(marks[name] for name in names) for kind, names in _kinds(marks).items()},
            seconds=seconds,
            first_version_s=first_version_s,
            accepted=len(report.updates),
            sent_by_devices=report.totals.bytes_up,
            received_by_devices=report.totals.bytes_down,
            answers_s=asker.answers_s,
            late_s=asker.late_s,
        )


def _settings(options: Options) -> dict[str, Any]:
    compression = {"start": "snapshot", "density": options.density, "down_density": options.density}
    return {
        "rounds": options.rounds,
        "compression": compression,
        "federated_evaluation": False,
        "evaluate_every": 0,
        "selection": {
            "min_available_devices": options.devices,
            "deadline_factor": 0,
            "round_timeout_s": options.timeout_s,
        },
    }


def _kinds(names: Any) -> dict[str, list[str]]:  # noqa: ANN401  # any iterable of names
    """Names of groups by kind: all agents are one kind."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        first, _, part = name.partition(" ")
        kind = f"agent {part}".strip() if first.startswith("dev-") else name
        kinds.setdefault(kind, []).append(name)
    return kinds


def _largest(peaks: dict[str, Memory]) -> dict[str, Memory]:
    return {
        kind: Memory(
            max(peaks[name].rss for name in names),
            max(peaks[name].anonymous for name in names),
            max(peaks[name].pss for name in names),
        )
        for kind, names in _kinds(peaks).items()
    }


def show(options: Options, result: Result) -> None:
    """Print it."""
    model = result.model_bytes
    print(
        f"{options.parameters:,} parameters, {model / 1e6:,.0f} MB in float32; {options.devices} devices, "
        f"{result.accepted} updates in {options.rounds} rounds"
    )
    print(
        f"{result.seconds:.1f} s in all, the first version after {result.first_version_s:.1f} s; bytes by the devices' "
        f"count: {result.sent_by_devices:,} up, {result.received_by_devices:,} down"
    )
    print(
        f"{'peak':<18}{'resident':>10}{'times':>7}{'in no file':>12}{'times':>7}{'its share':>11}{'kernel mark':>13}"
    )
    for kind, peak in sorted(result.peaks.items()):
        print(
            f"{kind:<18}{peak.rss / 1e6:>7,.0f} MB{peak.rss / model:>7.2f}{peak.anonymous / 1e6:>9,.0f} MB"
            f"{peak.anonymous / model:>7.2f}{peak.pss / 1e6:>8,.0f} MB{result.high_water.get(kind, 0) / 1e6:>10,.0f} MB"
        )
    answers = sorted(result.answers_s)
    print(
        f"answers of the API: {len(answers)}, median {1e3 * answers[len(answers) // 2]:.0f} ms, longest "
        f"{1e3 * answers[-1]:.0f} ms; a bare timer was late by at most {1e3 * result.late_s:.0f} ms"
    )
    for what, times, bound in (
        ("coordinator", result.peaks["coordinator"].rss / model, COORDINATOR_TIMES),
        ("coordinator and model host", result.peaks["with model host"].rss / model, COORDINATOR_TIMES),
        ("agent", result.peaks["agent"].rss / model, AGENT_TIMES),
        ("longest answer, s,", answers[-1], ANSWER_S),
    ):
        print(f"{what} {times:.2f}, bound {bound}: {'within' if times <= bound else 'ABOVE'}")


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=Options.parameters)
    parser.add_argument("--devices", type=int, default=Options.devices)
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--density", type=float, default=Options.density)
    parser.add_argument("--folder", type=Path, help="on the disk to be used: some 1.3 GB a device and 2 GB")
    parser.add_argument("--json", type=Path)
    given = vars(parser.parse_args())
    out = given.pop("json")
    options = Options(**given)
    print(machine())
    result = measure(options)
    show(options, result)
    if out:
        out.write_text(
            json.dumps({"options": asdict(options), "result": asdict(result)}, indent=1, default=str)
        )


if __name__ == "__main__":
    main()
