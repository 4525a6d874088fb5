"""What slow devices cost: time to 95 % with one and with three of ten sleeping 3 s a task, beside none.

    make bench BENCH=stragglers ARGS="--repeat 3"

The bound to read against, IID: FedBuff within 1.5 times the time of its run without stragglers, synchronous rounds with
a short deadline within twice. Dirichlet 0.3 is reported. Devices are the same processes as in `fedmq demo`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.demo_runs import run_demo, seconds_to
from benchmarks.figures import machine, spread

ROUNDS = {"sync": 50, "fedbuff": 120}
SLEEP_S = 3.0


def measure(mode: str, partition: str, stragglers: int, repeat: int) -> dict[str, Any]:
    """Repeated runs of one kind."""
    times: list[float] = []
    counted: list[int] = []
    staleness: dict[str, int] = {}
    for seed in range(repeat):
        report = run_demo(
            *("--mode", mode, "--partition", partition, "--seed", seed, "--rounds", ROUNDS[mode]),
            *("--stragglers", stragglers, "--straggler-delay", SLEEP_S),
        )
        reached = seconds_to(report)
        if reached is not None:
            times.append(reached)
        slow = {device["id"] for device in report["devices"] if device["slow_s"]}
        mine = [update for update in report["updates"] if update["device"] in slow]
        counted.append(len(mine))
        for update in mine:
            key = str(update["staleness"])
            staleness[key] = staleness.get(key, 0) + 1
    return {
        "seconds": times,
        "unreached": repeat - len(times),
        "sleepers_updates": counted,
        "staleness": staleness,
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
    results: dict[str, Any] = {}
    for partition in ("iid", "dirichlet"):
        for mode in ("fedbuff", "sync"):
            base: float | None = None
            for stragglers in (0, 1, 3):
                found = measure(mode, partition, stragglers, options.repeat)
                results[f"{partition}-{mode}-{stragglers}"] = found
                text = f"{partition} {mode}, {stragglers} of ten asleep: "
                if found["seconds"]:
                    middle = statistics.median(found["seconds"])
                    base = base or middle
                    text += f"95 % after {spread(found['seconds'], 1)} s, {middle / base:.2f} times"
                else:
                    text += "95 % not reached"
                if found["unreached"]:
                    text += f"; {found['unreached']} of {options.repeat} runs did not reach it"
                if stragglers:
                    text += f"; their updates that counted: {found['sleepers_updates']}, staleness {found['staleness']}"
                print(text, flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
