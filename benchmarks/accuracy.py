"""What compression costs at round 100: each seed's sparse run beside float32 both ways with the same seed.

    make bench BENCH=accuracy ARGS="--seeds 5"
    make bench BENCH=accuracy ARGS="--setting density=0.005,down_density=0.01,up=topk-sign"

Digits, MLP 64-512-512-10, ten devices, synchronous, in one process (see in_process.py) with the project's own training,
error feedback, codecs and steps. A setting is compression settings of a run, and `server_lr`; what it does not name is
the default. The bound to read against is half a point, on the mean of five seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import first_at, machine, paired
from benchmarks.in_process import Compression, federate, settings_of

LAST: Final = 5
"""Rounds at the end whose mean is given beside the last one."""
SETTINGS: Final = ("density=0.01,up=topk-log4", "density=0.01,up=topk-sign")


def curve(partition: str, seed: int, rounds: int, compression: Compression | None) -> list[float]:
    """Accuracy after each round; None: float32 both ways."""
    options, settings = settings_of(partition, seed, compression)
    measured = []
    for outcome in federate(options, settings):
        measured.append(outcome.accuracy)
        if outcome.number == rounds:
            return measured
    raise AssertionError("federate ends only where its caller does")


def parse(setting: str) -> Compression:
    """`density=0.01,up=topk-sign` as what it says."""
    pairs = (each.split("=", 1) for each in setting.split(",") if each)
    return {name: float(value) if value[0].isdigit() else value for name, value in pairs}


def compare(partition: str, seeds: int, rounds: int, settings: list[str]) -> dict[str, Any]:
    """Every setting against float32, seed by seed."""
    plain = [curve(partition, seed, rounds, None) for seed in range(seeds)]
    ends = [100 * each[-1] for each in plain]
    print(f"{partition}, float32: at round {rounds} {statistics.fmean(ends):.2f} %", flush=True)
    result: dict[str, Any] = {"float32": plain}
    for setting in settings:
        sparse = [curve(partition, seed, rounds, parse(setting)) for seed in range(seeds)]
        pairs = list(zip(sparse, plain, strict=True))
        mean, half = paired([100 * (mine[-1] - theirs[-1]) for mine, theirs in pairs])
        last, last_half = paired(
            [
                100 * (statistics.fmean(mine[-LAST:]) - statistics.fmean(theirs[-LAST:]))
                for mine, theirs in pairs
            ]
        )
        print(
            f"{partition}, {setting}: at round {rounds} {mean:+.2f} points +- {half:.2f} (95 %, paired); "
            f"mean of the last {LAST} rounds {last:+.2f} +- {last_half:.2f}; 95 % at round "
            f"{[first_at(each) for each in sparse]}, float32 {[first_at(each) for each in plain]}",
            flush=True,
        )
        result[setting] = {
            "accuracy": sparse,
            "points_at_end": mean,
            "points_at_end_half_interval": half,
            "points_last": last,
            "points_last_half_interval": last_half,
        }
    return result


def main() -> None:
    """Compare, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--partition", choices=["iid", "dirichlet"], action="append")
    parser.add_argument("--setting", action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine())
    settings = options.setting or list(SETTINGS)
    result = {
        each: compare(each, options.seeds, options.rounds, settings)
        for each in options.partition or ["iid", "dirichlet"]
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
