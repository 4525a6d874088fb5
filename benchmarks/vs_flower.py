"""Against Flower on the same work: bytes to 95 %, rounds, seconds a round, and their ratios, all from this run.

    make bench BENCH=vs_flower ARGS="--json FILE"

Digits, MLP 64-512-512-10, ten devices, full participation, SGD 0.05 with momentum 0.9, batches of 32, two local epochs,
IID and Dirichlet 0.3; the same partitions, first weights and shuffles on both sides (see flower_app/work.py). Devices'
TCP connections go through a counting proxy, and both directions count, from the first byte on. 95 % is reached with the
first round at which the mean of three successive ones has.

- Flower's rounds to 95 % come from its older server in memory, run here through the proxy, because a round takes its
  recommended deployment (superlink, supernodes) half a minute on a small machine; `--full` runs that one to the end,
  too. The arithmetic is the same in both, and the script compares the accuracies of the rounds that both have run.
- Bytes of the recommended deployment are counted over `--rounds` rounds, and multiplied: a round always moves the same.
- fedmq is `fedmq demo`, through Mosquitto, at its defaults; options that are not this script's own go to it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import bytes_to_target
from benchmarks.figures import MEAN_OF, first_at, machine, spread
from benchmarks.flower import VERSION, FlowerRound, deployed, in_memory

_SAME = 0.015
"""Accuracies of the two deployments may differ by the order of a sum: so much of 359 examples."""


def bytes_over(rounds: list[FlowerRound], number: int) -> float:
    """Bytes both ways to the end of round `number`, each round moving the same."""
    last = rounds[-1]
    return (last.up + last.down) * number / last.number


def seconds_each(rounds: list[FlowerRound]) -> list[float]:
    """Length of each round but the first, which waits for the clients to start."""
    return [later.at - earlier.at for earlier, later in itertools.pairwise(rounds[1:])]


def compare(partition: str, seed: int, options: argparse.Namespace, extra: list[str]) -> dict[str, Any]:
    """Both sides on one partition and seed."""
    memory = in_memory(partition, seed, options.limit)
    accuracy = [each.accuracy for each in memory[1:]]
    reached = first_at(accuracy)
    superlink = deployed(partition, seed, options.limit if options.full else options.rounds)
    apart = max(abs(a.accuracy - b.accuracy) for a, b in zip(superlink, memory, strict=False))
    if apart > _SAME:
        print(f"  Flower's two deployments differ by {apart:.3f} in accuracy: read its rounds with care")
    if options.full:
        reached = first_at([each.accuracy for each in superlink[1:]])
    ours = bytes_to_target.once(partition, seed, options.limit, extra)
    result: dict[str, Any] = {
        "seed": seed,
        "flower_round": reached,
        "flower_accuracy": accuracy,
        "flower_accuracy_deployed": [each.accuracy for each in superlink[1:]],
        "flower_mb_a_round": bytes_over(superlink, 1) / 1e6,
        "flower_in_memory_mb_a_round": bytes_over(memory, 1) / 1e6,
        "flower_s_a_round": statistics.median(seconds_each(superlink)),
        "flower_in_memory_s_a_round": statistics.median(seconds_each(memory)),
        "fedmq_round": ours["round"],
        "fedmq_accuracy": ours["accuracy"],
        "fedmq_s_a_round": ours["s_a_round"],
        "fedmq_snapshot_mb": ours["snapshot_bytes"] / 1e6,
    }
    if reached is None or ours["round"] is None:
        print(
            f"{partition} seed {seed}: Flower at round {reached}, fedmq at round {ours['round']}", flush=True
        )
        return result
    theirs_mb = bytes_over(superlink, reached) / 1e6
    ours_mb = (ours["bytes_up"] + ours["bytes_down"]) / 1e6
    result |= {
        "flower_mb": theirs_mb,
        "fedmq_mb": ours_mb,
        "fedmq_mb_up": ours["bytes_up"] / 1e6,
        "fedmq_mb_down": ours["bytes_down"] / 1e6,
        "ratio": theirs_mb / ours_mb,
        "ratio_in_memory": bytes_over(memory, reached) / 1e6 / ours_mb,
        "ratio_without_snapshot": theirs_mb / (ours_mb - result["fedmq_snapshot_mb"]),
    }
    print(
        f"{partition} seed {seed}: Flower {theirs_mb:.1f} MB in {reached} rounds "
        f"({result['flower_mb_a_round']:.2f} MB and {result['flower_s_a_round']:.1f} s each), "
        f"fedmq {ours_mb:.3f} MB in {ours['round']} ({ours['s_a_round']:.2f} s each): "
        f"{result['ratio']:.0f} times less, {result['ratio_without_snapshot']:.0f} times without the "
        f"{result['fedmq_snapshot_mb']:.2f} MB of first snapshots; "
        f"Flower in memory moves {result['flower_in_memory_mb_a_round']:.2f} MB in "
        f"{result['flower_in_memory_s_a_round']:.2f} s a round",
        flush=True,
    )
    return result


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="of Flower's recommended deployment")
    parser.add_argument("--limit", type=int, default=40, help="rounds that 95 %% is waited for")
    parser.add_argument(
        "--full", action="store_true", help="run the recommended deployment to the limit, too"
    )
    parser.add_argument("--partition", choices=["iid", "dirichlet"], action="append")
    parser.add_argument("--json", type=Path)
    options, extra = parser.parse_known_args()
    if options.rounds < MEAN_OF:
        parser.error(f"--rounds is {MEAN_OF} at least: the first waits for the clients, and does not count")
    print(f"{machine()}; flwr {VERSION}; 95 %: the mean of {MEAN_OF} successive rounds")
    result: dict[str, Any] = {"flwr": VERSION}
    for partition in options.partition or ["iid", "dirichlet"]:
        runs = [compare(partition, seed, options, extra) for seed in range(options.seeds)]
        result[partition] = runs
        ratios = [run["ratio"] for run in runs if "ratio" in run]
        if ratios:
            print(f"{partition}: {spread(ratios, 0)} times fewer bytes than Flower", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
