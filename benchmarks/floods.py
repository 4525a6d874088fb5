"""What a device that floods costs the others: their round time with it and without, in turns, and the broker's memory.

    python benchmarks/floods.py --kinds small-qos0,largest --turns 6 --json FILE

A Mosquitto as `fedmq broker init` sets it up (TLS, client certificates, the security plugin), a coordinator, ten agents
whose trainers take a fixed time, 300,000 parameters at 1 %, and one member more that floods it in turns of some seconds
with turns of peace between them. On a machine with two cores the flooder takes processor time from everybody. So a
third kind of turn has a process beside it that burns as much at the same niceness and says nothing: what the flood
costs beyond that is the broker's and the coordinator's doing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import floods_stage
from benchmarks.figures import machine
from benchmarks.flooder import ATTACKS
from fedmq_broker.guarding.quarantine import Quarantine
from fedmq_coordinator.shell.client import Client
from fedmq_protocol.errors import UsageError

_MB: Final = 2**20
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_WARM_UP: Final = 8
_CHILDREN: Final = {
    "coordinator": floods_stage.be_coordinator,
    "fleet": floods_stage.be_fleet,
    "guard": floods_stage.be_guard,
}
_BURN: Final = "while True: pass"


@dataclass
class Turn:
    """Some seconds of one kind.

    Attributes:
        kind: `peace`, `burn` or `flood`.
        rounds_s: how long the rounds took that began and ended in it.
        cpu_s: processor time of each process.
        resident: bytes, at its end.
    """

    kind: str
    seconds: float
    rounds_s: list[float] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    flooder: str = ""


class Rounds:
    """When each version's training began, as the devices' process tells."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.began: list[float] = []
        self._process = process
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.began.append(float(line.split()[0]))

    def between(self, start: float, end: float) -> list[float]:
        """Of the rounds that ended in that time; one that does not end counts by its length so far."""
        ends = [at for at in self.began if at <= end]
        found = [later - at for at, later in itertools.pairwise(ends) if later > start]
        if ends and end - ends[-1] > 2 * max(found, default=1.0):
            found.append(end - ends[-1])
        return found


class Stage:
    """The processes."""

    def __init__(self, root: Path, stack: contextlib.ExitStack, options: argparse.Namespace) -> None:
        self.place = asyncio.run(floods_stage.build(root))
        self.options = options
        self.pids: dict[str, int] = {"broker": stack.enter_context(floods_stage.mosquitto(self.place)).pid}
        log = stack.enter_context((root / "log").open("w"))
        for name in ("coordinator", "fleet") if options.unguarded else ("coordinator", "fleet", "guard"):
            process = self.child(name, stdout=subprocess.PIPE, stderr=log)
            stack.callback(end, process)
            self.pids[name] = process.pid
            if name == "coordinator":
                begin_run(root / "coordinator")
            elif name == "fleet":
                self.rounds = Rounds(process)

    def child(self, name: str, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401
        command = [sys.executable, __file__, "--child", name, str(self.place.root), str(self.place.port)]
        return subprocess.Popen(command, text=True, **options)  # noqa: S603  # this program

    def warm_up(self, root: Path) -> None:
        """Wait for some rounds."""
        give_up_at = time.monotonic() + 30
        while len(self.rounds.began) < _WARM_UP:
            if time.monotonic() > give_up_at:
                raise SystemExit(f"no rounds:\n{(root / 'log').read_text()[-3_000:]}")
            time.sleep(0.1)

    def turn(self, kind: str, attack: str) -> Turn:
        """Some seconds, with something beside them."""
        beside: subprocess.Popen[str] | None = None
        command = {
            "burn": [sys.executable, "-c", _BURN],
            "flood": [
                sys.executable,
                "-m",
                "benchmarks.flooder",
                attack,
                str(self.place.root),
                str(self.place.port),
            ],
        }.get(kind)
        if command is not None:
            beside = subprocess.Popen(  # noqa: S603  # this program's other half
                ["/usr/bin/nice", "-n", str(self.options.nice), *command],
                text=True,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[1],
            )
            time.sleep(0.5)  # its start is nobody's round
        cpu = {name: cpu_s(pid) for name, pid in self.pids.items()}
        began = time.monotonic()
        time.sleep(self.options.seconds)
        ended = time.monotonic()
        found = Turn(kind, ended - began, self.rounds.between(began, ended))
        found.cpu_s = {name: cpu_s(pid) - cpu[name] for name, pid in self.pids.items()}
        found.resident = {name: resident(pid) for name, pid in self.pids.items()}
        if beside is not None:
            found.cpu_s["beside"] = cpu_s(beside.pid)
            beside.kill()
            assert beside.stdout is not None
            found.flooder = (beside.stdout.read().splitlines() or [""])[-1]
            beside.wait()
            time.sleep(self.options.rest)
            if kind == "flood":  # the next one is as new to everybody as the first
                with contextlib.suppress(UsageError):
                    Quarantine(self.place.site.quarantine).forgive(floods_stage.FLOODER)
        return found


def end(process: subprocess.Popen[str]) -> None:
    """Stop a process of ours."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def begin_run(state_dir: Path) -> None:
    """Have the coordinator begin, once it is there."""
    while not (state_dir / "api.json").exists():
        time.sleep(0.05)
    settings = {
        "rounds": 10**6,
        "compression": {
            "density": floods_stage.DENSITY,
            "down_density": floods_stage.DENSITY,
            "start": "snapshot",
        },
        "selection": {"min_available_devices": floods_stage.DEVICES},
    }
    with Client(state_dir) as client:
        client.start_run("flooded.py", name="r", settings=settings)


def cpu_s(pid: int) -> float:
    """Processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(attack: str, options: argparse.Namespace) -> dict[str, Any]:
    """Turns of peace, of a burner and of one flood."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir)))
        stage = Stage(root, stack, options)
        stage.warm_up(root)
        kinds = ["peace", "burn", "flood"] * options.turns
        turns = [stage.turn(kind, attack) for kind in kinds]
        with Client(root / "coordinator") as client:
            status = client.status()
        log = (root / "log").read_text()
    found = {
        kind: summary([turn for turn in turns if turn.kind == kind]) for kind in ("peace", "burn", "flood")
    }
    told = {device.device: device.problem for device in status.devices if device.problem}
    result = {
        "attack": attack,
        "turns": found,
        "told": told,
        "log": [line for line in log.splitlines() if "floods" in line or "cut off" in line],
    }
    print_result(result)
    return result


def summary(turns: list[Turn]) -> dict[str, Any]:
    """Of all turns of a kind."""
    rounds = [each for turn in turns for each in turn.rounds_s]
    seconds = sum(turn.seconds for turn in turns)
    return {
        "rounds": len(rounds),
        "median_s": statistics.median(rounds) if rounds else None,
        "worst_s": max(rounds, default=None),
        "cpu": {name: sum(turn.cpu_s[name] for turn in turns) / seconds for name in turns[0].cpu_s},
        "resident_mb": {name: max(turn.resident[name] for turn in turns) / _MB for name in turns[0].resident},
        "flooder": turns[-1].flooder,
    }


def print_result(result: dict[str, Any]) -> None:
    """A few lines."""
    peace = result["turns"]["peace"]["median_s"]
    print(f"\n{result['attack']}")
    for kind, found in result["turns"].items():
        cpu = "  ".join(f"{name} {100 * share:3.0f} %" for name, share in found["cpu"].items())
        memory = "  ".join(
            f"{name} {found['resident_mb'][name]:.0f} MB" for name in ("broker", "coordinator")
        )
        median, worst = found["median_s"] or float("nan"), found["worst_s"] or float("nan")
        print(
            f"  {kind:6} {found['rounds']:4} rounds, median {median:6.3f} s ({median / peace:5.2f}), "
            f"worst {worst:6.2f} s | {cpu} | {memory} {found['flooder']}",
            flush=True,
        )
    for line in [f"{device} {problem}" for device, problem in result["told"].items()] + result["log"][:4]:
        print(f"  told: {line}", flush=True)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(ATTACKS))
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--nice", type=int, default=19, help="of the flooder, and of who burns as much")
    parser.add_argument("--unguarded", action="store_true", help="without `fedmq broker guard`")
    parser.add_argument("--rest", type=float, default=6.0, help="seconds after a turn that was no peace")
    parser.add_argument(
        "--dir", type=Path, default=None, help="for the files; a RAM disk leaves the disk out of it"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "ROOT", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        name, root, port = options.child
        place = floods_stage.Place(Path(root), int(port))
        asyncio.run(_CHILDREN[name](place))
        return
    print(machine())
    results = [measure(attack, options) for attack in options.kinds.split(",")]
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
