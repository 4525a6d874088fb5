"""What compression costs in rounds and accuracy: each seed's run beside uncompressed FedAvg of the same seed.

    make bench BENCH=convergence ARGS="--seeds 5 --rounds 50"

Digits, MLP 64-512-512-10, ten devices, by `fedmq demo`: real agents, a real broker. The bound to read against is 1.8
times the rounds (IID) and 2.2 (Dirichlet 0.3), and half a point at round 50.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.demo_runs import run_demo
from benchmarks.figures import first_at, machine, paired, spread


def compare(partition: str, seeds: int, rounds: int, extra: list[str]) -> dict[str, Any]:
    """Pairs of runs, seed by seed."""
    ratios: list[float] = []
    differences: list[float] = []
    tails: list[float] = []
    for seed in range(seeds):
        common: list[str | float] = [
            "--partition",
            partition,
            "--alpha",
            0.3,
            "--seed",
            seed,
            "--rounds",
            rounds,
            "--set",
            "selection.deadline_factor=0",  # nobody is late: what is compared is compression
        ]
        plain = run_demo(*common, "--compression", "none")["accuracy"]
        sparse = run_demo(*common, *extra)["accuracy"]
        reached = first_at(plain), first_at(sparse)
        if reached[0] is not None and reached[1] is not None:
            ratios.append(reached[1] / reached[0])
        differences.append(100 * (sparse[-1] - plain[-1]))
        tails.append(100 * (statistics.fmean(sparse[-5:]) - statistics.fmean(plain[-5:])))
        print(
            f"{partition} seed {seed}: 95 % at round {reached[0]} uncompressed, {reached[1]} compressed; "
            f"round {rounds}: {plain[-1]:.4f}, {sparse[-1]:.4f}",
            flush=True,
        )
    mean, half = paired(differences)
    print(
        f"{partition}: ratio of rounds {spread(ratios)}; at round {rounds} {mean:+.2f} points "
        f"+- {half:.2f} (95 %, paired); last five rounds {statistics.fmean(tails):+.2f}"
    )
    return {
        "ratios": ratios,
        "ratio_median": statistics.median(ratios) if ratios else None,
        "unreached": seeds - len(ratios),
        "points_at_end": differences,
        "points_at_end_mean": mean,
        "points_at_end_half_interval": half,
        "points_last_five_mean": statistics.fmean(tails),
    }


def main() -> None:
    """Compare, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--partition", choices=["iid", "dirichlet"], action="append")
    parser.add_argument("--json", type=Path)
    options, extra = parser.parse_known_args()
    print(machine())
    partitions = options.partition or ["iid", "dirichlet"]
    result = {each: compare(each, options.seeds, options.rounds, extra) for each in partitions}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
