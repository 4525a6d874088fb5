"""What a device pays for being there: a real agent as its unit starts it, with mutual TLS to a site's Mosquitto.

    make bench BENCH=idle ARGS="--json idle.json"

The agent trains the digits task in a run of its own, round after round, so that it has worked before it is looked at;
then the run is over, and it waits for the next one. Memory is the kernel's book of resident pages; CPU is that of the
supervisor and of its trainer; bytes are those that the agent counts on its socket, TLS with them, TCP and IP not. The
time to the first update is from the start of the process to the end of the first training, with nothing on the disk:
imports of PyTorch and scikit-learn, the handshake, the model's download and the training itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.figures import machine
from benchmarks.floods_stage import FEDERATION, Place, build, device_name, mosquitto
from benchmarks.process_memory import Memory, high_water, read

DEVICE: Final = device_name(0)
PATIENCE_S: Final = 300.0
_MB: Final = 1e6
COMPILED: Final = {"PYTHONDONTWRITEBYTECODE": ""}
"""An installed agent finds its modules compiled."""
IMPORTS: Final = "import fedmq.cli, fedmq.commands.agent, fedmq_edge_agent.shell.main, fedmq.logs"


def command(*arguments: str) -> list[str]:
    """Run `fedmq` with these arguments."""
    return [sys.executable, "-m", "fedmq", *arguments]


def write_settings(place: Place) -> tuple[Path, Path]:
    """The coordinator's file and the device's."""
    files = []
    for name, member, more in (
        ("fed.toml", "@coordinator", '[coordinator]\nstate_dir = "coordinator"\nlisten = "127.0.0.1:0"\n'),
        ("device.toml", DEVICE, f'[device]\nid = "{DEVICE}"\ntask = "digits"\nstate_dir = "device"\n'),
    ):
        broker = place.settings(member)
        text = f'[federation]\nname = "{FEDERATION}"\n[broker]\nurl = "{broker.url}"\nca_file = "{broker.ca_file}"\n'
        text += f'cert_file = "{broker.cert_file}"\nkey_file = "{broker.key_file}"\n{more}'
        files.append(place.root / name)
        files[-1].write_text(text, encoding="utf-8")
    return files[0], files[1]


class Log:
    """The lines that a process says, with the moment at which each was heard."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._heard: queue.Queue[tuple[float, str]] = queue.Queue()
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._heard.put((time.monotonic(), line))

    def until(self, words: str) -> float:
        """When the next line with these words was heard."""
        seen = []
        try:
            while True:
                at, line = self._heard.get(timeout=PATIENCE_S)
                seen.append(line)
                if words in line:
                    return at
        except queue.Empty:
            sys.exit(f"nobody said {words!r}:\n{''.join(seen[-20:])}")


@contextlib.contextmanager
def started(
    arguments: list[str], place: Place, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], Log]]:
    """A process of ours, ended at the end."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        command(*arguments),
        cwd=place.root,
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, Log(process)
    finally:
        process.terminate()
        process.wait(20)


class Looked:
    """The agent at a moment."""

    def __init__(self, place: Place, supervisor: psutil.Process) -> None:
        # The status tells of the moment at which it was written: all is taken from then on.
        before = self._status(place)["written_s"]
        give_up = time.monotonic() + PATIENCE_S
        while (status := self._status(place))["written_s"] == before:
            if time.monotonic() > give_up:
                sys.exit("the agent writes no status")
            time.sleep(0.1)
        self.at = time.monotonic()
        self.moved: int = status["sent_bytes"] + status["received_bytes"]
        self.cpu_s = _cpu_s(supervisor)
        children = supervisor.children(recursive=True)
        self.trainer_cpu_s = sum(map(_cpu_s, children))
        self.supervisor: Memory = read(supervisor.pid)
        self.trainer: Memory = sum((read(child.pid) for child in children), Memory())
        self.trainer_peak = sum(high_water(child.pid) for child in children)

    @staticmethod
    def _status(place: Place) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((place.root / "device/status.json").read_text(encoding="utf-8"))
        return status


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(place: Place, *, rounds: int, idle_s: float) -> dict[str, Any]:
    """One agent's life: start, rounds, peace."""
    fed, device = write_settings(place)
    runtime = place.root / "runtime"
    runtime.mkdir()
    with mosquitto(place), started(["coordinator", "start", "--config", str(fed)], place) as (_, coordinator):
        coordinator.until("connected")
        sets = [f"rounds={rounds}", "selection.min_available_devices=1", "train.lr=0.001"]
        arguments = ["run", "start", "digits", "--config", str(fed)]
        arguments += [part for each in sets for part in ("--set", each)]
        subprocess.run(command(*arguments), cwd=place.root, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        subprocess.run([sys.executable, "-c", IMPORTS], env={**os.environ, **COMPILED}, check=True)  # noqa: S603
        began = time.monotonic()
        unit = {"MALLOC_ARENA_MAX": "1", "RUNTIME_DIRECTORY": str(runtime), **COMPILED}
        with started(["agent", "start", "--config", str(device)], place, **unit) as (process, log):
            supervisor = psutil.Process(process.pid)
            connected_s = log.until("connected to the broker") - began
            first_s = log.until("trained on version") - began
            early = Looked(place, supervisor)
            log.until("the run is finished")
            before = Looked(place, supervisor)
            time.sleep(idle_s)
            after = Looked(place, supervisor)
    lasted_s = after.at - before.at
    return {
        "rounds": rounds,
        "idle_s": round(lasted_s, 1),
        "connected_s": round(connected_s, 2),
        "first_update_s": round(first_s, 2),
        "supervisor_rss_early": early.supervisor.rss,
        "supervisor_rss": after.supervisor.rss,
        "supervisor_pss": after.supervisor.pss,
        "supervisor_anonymous": after.supervisor.anonymous,
        "trainer_rss": after.trainer.rss,
        "trainer_peak_rss": after.trainer_peak,
        "supervisor_cpu": (after.cpu_s - before.cpu_s) / lasted_s,
        "trainer_cpu": (after.trainer_cpu_s - before.trainer_cpu_s) / lasted_s,
        "bytes_an_hour": (after.moved - before.moved) / lasted_s * 3_600,
        "worked_bytes": before.moved,
    }


def show(figures: dict[str, Any]) -> None:
    """For people."""
    lines = [
        ("time to be connected", f"{figures['connected_s']:.1f} s"),
        ("time to the first update", f"{figures['first_update_s']:.1f} s"),
        ("supervisor, after its first round", f"{figures['supervisor_rss_early'] / _MB:.1f} MB resident"),
        (
            f"supervisor, after {figures['rounds']} rounds",
            f"{figures['supervisor_rss'] / _MB:.1f} MB resident, {figures['supervisor_anonymous'] / _MB:.1f} its own",
        ),
        ("trainer, waiting", f"{figures['trainer_rss'] / _MB:.0f} MB resident"),
        ("trainer, at most", f"{figures['trainer_peak_rss'] / _MB:.0f} MB"),
        ("supervisor, waiting", f"{100 * figures['supervisor_cpu']:.3f} % of a core"),
        ("trainer, waiting", f"{100 * figures['trainer_cpu']:.3f} % of a core"),
        ("waiting", f"{figures['bytes_an_hour']:.0f} bytes an hour, over {figures['idle_s']:.0f} s"),
    ]
    for name, text in lines:
        print(f"{name:<36} {text}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, help="to work before it is looked at")
    parser.add_argument("--idle-s", type=float, default=300.0, help="to look at it in peace, in seconds")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = asyncio.run(build(Path(folder)))
        figures = measure(place, rounds=options.rounds, idle_s=options.idle_s)
    figures["machine"] = machine()
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
