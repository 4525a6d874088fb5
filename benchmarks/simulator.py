"""How fast the simulator is: fleets without training, and histories with faults, in seconds of CPU and of the clock.

make bench BENCH=simulator ARGS="--json simulator.json"
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

from benchmarks.figures import machine
from fedmq.simulation.faults.runner import run_histories
from fedmq.simulation.fleet.plan import Plan
from fedmq.simulation.fleet.run import simulate
from fedmq_coordinator.core.settings import RunSettings


def fleet(devices: int, versions: int, share: float) -> dict[str, float]:
    """FedBuff, ten updates a version; training takes lognormal(30, 0.5) s on Wi-Fi."""
    settings = RunSettings.model_validate({"rounds": versions, "selection": {"fraction_train": share}})
    began, cpu = time.perf_counter(), time.process_time()
    found = simulate(Plan(devices, settings), "fedbuff")
    assert found.state == "finished"
    return {
        "devices": devices,
        "at_once": share,
        "versions": versions,
        "updates": found.counted,
        "virtual_s": found.virtual_s,
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def histories(count: int) -> dict[str, float]:
    """Seeded histories with faults, every invariant checked after every step, in this process alone."""
    began, cpu = time.perf_counter(), time.process_time()
    tally, failure = run_histories(count, seed=0, jobs=1)
    assert failure is None, failure
    taken = time.process_time() - cpu
    return {
        "histories": count,
        "events": tally.events,
        "wall_s": time.perf_counter() - began,
        "cpu_s": taken,
        "a_second": count / (time.perf_counter() - began),
    }


def main() -> None:
    """Print a line for each fleet, and one for the histories."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="1000,10000", help="sizes of fleets, with commas between")
    parser.add_argument("--versions", type=int, default=100, help="of each run")
    parser.add_argument("--share", type=float, default=1.0, help="of the devices that train at once")
    parser.add_argument("--histories", type=int, default=300, help="0: none")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    options = parser.parse_args()
    report: dict[str, object] = {"machine": machine()}
    fleets = report["fleets"] = []
    for devices in map(int, options.devices.split(",")):
        found = fleet(devices, options.versions, options.share)
        fleets.append(found)
        print(
            f"{devices} devices, {options.versions} versions, {found['updates']} updates: {found['wall_s']:.1f} s, "
            f"{found['cpu_s']:.1f} s of CPU, for {found['virtual_s']:.0f} virtual seconds; {found['peak_mb']:.0f} MB",
            flush=True,
        )
    if options.histories:
        found = report["histories"] = histories(options.histories)
        print(f"{options.histories} histories with faults: {found['a_second']:.1f} a second on one core")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
