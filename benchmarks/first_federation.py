"""The first federation, measured: time a round, time to the first round, bytes on the wire, memory.

    make bench BENCH=first_federation ARGS="--repeat 3"

Runs `fedmq demo` (digits, ten devices, 20 synchronous rounds) against a Mosquitto behind a proxy that counts every byte
of each device's TCP connection, both ways, and samples the resident memory of every process. Beside it, the same bytes
moved by bare MQTT clients (see `mqtt_client.py` for those) are no part of this script; Flower's figures for the same
work on this kind of machine stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from benchmarks.demo_runs import run_demo
from benchmarks.figures import machine, spread
from benchmarks.mqtt_bytes import is_device
from benchmarks.proxy import CountingProxy
from fedmq_broker.runner import start_broker

_SAMPLE_S = 0.2


class MemorySampler(threading.Thread):
    """The largest resident set seen of each kind of process below this one."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks_mb: dict[str, dict[int, float]] = {}
        self._ended = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(_SAMPLE_S):
            for process in me.children(recursive=True):
                try:
                    kind = _kind(process)
                    memory = process.memory_full_info()
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                for what, value in ((kind, memory.rss), (f"{kind} (private and its share)", memory.pss)):
                    peaks = self.peaks_mb.setdefault(what, {})
                    peaks[process.pid] = max(peaks.get(process.pid, 0.0), value / 2**20)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _kind(process: psutil.Process) -> str:
    """What a process of the demo is, by its title or command line."""
    line = " ".join(process.cmdline())
    for word, kind in (
        ("mosquitto", "broker"),
        ("fedmq.demo.fleet", "agent supervisor"),
        ("nursery", "trainer"),
        ("trainer", "trainer"),
        ("coordinator", "coordinator"),
        ("fedmq demo", "demo"),
    ):
        if word in line:
            return kind
    return line[:40] or process.name()


def once(seed: int) -> dict[str, Any]:
    """One demo behind the proxy."""
    with tempfile.TemporaryDirectory() as state:
        broker = start_broker(kind="auto", port=0, state_dir=Path(state))
        try:
            proxy = CountingProxy(int(broker.url.rsplit(":", 1)[1]))
            proxy.start()
            sampler = MemorySampler()
            sampler.start()
            report = run_demo("--seed", seed, "--broker", f"mqtt://127.0.0.1:{proxy.port}")
            sampler.stop()
        finally:
            broker.stop()
    up, down = proxy.totals(is_device)
    return {
        "report": report,
        "proxy_up": up,
        "proxy_down": down,
        "connections": len({each.name for each in proxy.connections if is_device(each.name)}),
        "memory_mb": {kind: max(peaks.values()) for kind, peaks in sorted(sampler.peaks_mb.items())},
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine())
    direct = [run_demo("--seed", seed) for seed in range(options.repeat)]
    medians = [statistics.median(report["round_seconds"]) for report in direct]
    firsts = [report["time_to_first_round_s"] for report in direct]
    print(f"a round, median of each run's 20: {spread(medians, 3)} s")
    print(f"from the command to the end of the first round: {spread(firsts, 1)} s")
    runs = [once(seed) for seed in range(options.repeat)]
    for run in runs:
        report = run["report"]
        total = run["proxy_up"] + run["proxy_down"]
        float32 = report["bytes_float32"]
        print(
            f"bytes of {run['connections']} devices over {len(report['accuracy'])} rounds, by the proxy: "
            f"{run['proxy_up']:,} up, {run['proxy_down']:,} down, 1/{float32 / total:.1f} of float32 both ways; "
            f"by the agents: {report['bytes_up']:,} up, {report['bytes_down']:,} down"
        )
    print("resident memory, largest process of each kind, MB:")
    for kind, value in runs[-1]["memory_mb"].items():
        print(f"  {kind}: {value:.0f}")
    if options.json:
        result = {"round_seconds": medians, "first_round_seconds": firsts, "runs": runs}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
