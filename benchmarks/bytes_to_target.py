"""Bytes to 95 % on digits, ten devices, both ways, counted on the devices' TCP connections, and what they are spent on.

    make bench BENCH=bytes_to_target ARGS="--seeds 5"
    make bench BENCH=bytes_to_target ARGS="--partition iid --set compression.density=0.01"

Runs `fedmq demo` (MLP 64-512-512-10, two local epochs, synchronous rounds) against a Mosquitto behind a counting proxy.
95 % is reached with the first round at which the mean of three successive ones has; the bytes are those that all ten
devices had moved, from CONNECT on, when each held the version that this round made. The last column divides what
float32 both ways would have moved in as many rounds. Options that are not this script's own go to the demo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.demo_runs import run_demo
from benchmarks.figures import MEAN_OF, first_at, machine, spread
from benchmarks.mqtt_bytes import MODEL, Line, MqttBytes, is_device
from benchmarks.proxy import CountingProxy
from fedmq_broker.runner import start_broker

DEVICES = 10
FLOAT32_ROUND = 2 * 4 * 301_066 * DEVICES
"""Bytes of a round of float32 both ways."""


def once(partition: str, seed: int, rounds: int, extra: list[str]) -> dict[str, Any]:
    """One run behind the proxy.

    Returns:
        `round` (None where 95 % was not reached) and `bytes_up`, `bytes_down` to it; `snapshot_bytes`, how many of
        them were first snapshots; `first_touch`, the first single round at 95 %; `accuracy` of each round; `s_a_round`,
        the median; `total_up` and `total_down` over the whole run, and `lines`, what those were.
    """
    tap = MqttBytes()
    with tempfile.TemporaryDirectory() as state:
        broker = start_broker(kind="auto", port=0, state_dir=Path(state))
        try:
            proxy = CountingProxy(int(broker.url.rsplit(":", 1)[1]), tap=tap)
            proxy.start()
            report = run_demo(
                *("--partition", partition, "--alpha", 0.3, "--seed", seed, "--rounds", rounds),
                *("--set", "selection.deadline_factor=0"),  # nobody is late: what is counted is bytes
                *("--broker", f"mqtt://127.0.0.1:{proxy.port}", *extra),
            )
        finally:
            broker.stop()
    up, down = proxy.totals(is_device)
    if (sum(size for line, _, size in tap.table() if line.way == "up")) != up:
        raise RuntimeError("the packets do not add up to the bytes on the sockets")
    accuracy: list[float] = report["accuracy"]
    reached = first_at(accuracy)
    snapshots = tap.snapshot_bytes
    result: dict[str, Any] = {
        "seed": seed,
        "round": reached,
        "first_touch": next((i for i, value in enumerate(accuracy, 1) if value >= 0.95), None),
        "accuracy": accuracy,
        "s_a_round": statistics.median(report["round_seconds"]),
        "snapshot_bytes": snapshots,
        "total_up": up,
        "total_down": down,
        "lines": [
            {"way": line.way, "what": line.what, "packets": packets, "bytes": size}
            for line, packets, size in tap.table()
        ],
    }
    if reached is not None:
        result["bytes_up"], result["bytes_down"] = tap.to_version(reached)
    return result


def print_run(partition: str, run: dict[str, Any], rounds: int) -> None:
    """One run in a line."""
    if run["round"] is None:
        print(f"{partition} seed {run['seed']}: not within {rounds} rounds", flush=True)
        return
    moved = run["bytes_up"] + run["bytes_down"]
    print(
        f"{partition} seed {run['seed']}: round {run['round']}, {moved / 1e6:.3f} MB "
        f"({run['bytes_up'] / 1e6:.3f} up, {run['bytes_down'] / 1e6:.3f} down; "
        f"{run['snapshot_bytes'] / 1e6:.3f} of them snapshots), "
        f"1/{run['round'] * FLOAT32_ROUND / moved:.1f} of float32",
        flush=True,
    )


def summarise(partition: str, runs: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Print what the runs on one partition have in common, and give it back."""
    reached = [run for run in runs if run["round"] is not None]
    summary: dict[str, Any] = {"runs": runs, "unreached": len(runs) - len(reached)}
    if reached:
        total = [(run["bytes_up"] + run["bytes_down"]) / 1e6 for run in reached]
        seeded = [value - run["snapshot_bytes"] / 1e6 for value, run in zip(total, reached, strict=True)]
        summary["mb_median"] = statistics.median(total)
        summary["mb_without_snapshot_median"] = statistics.median(seeded)
        summary["round_median"] = statistics.median(run["round"] for run in reached)
        print(
            f"{partition}: to 95 % {spread(total, 3)} MB, snapshots apart {spread(seeded, 3)} MB, "
            f"rounds {spread([run['round'] for run in reached], 0)}"
        )
    print_lines(runs, rounds)
    return summary


def print_lines(runs: list[dict[str, Any]], rounds: int) -> None:
    """What the bytes of whole runs were spent on, a device and round."""
    lines: Counter[Line] = Counter()
    packets: Counter[Line] = Counter()
    for run in runs:
        for each in run["lines"]:
            line = Line(each["way"], each["what"])
            lines[line] += each["bytes"]
            packets[line] += each["packets"]
    whole = sum(lines.values())
    each_round = len(runs) * rounds * DEVICES
    print(f"  bytes a device and round, over whole runs of {rounds} rounds:")
    for line, size in lines.most_common():
        print(
            f"    {line.way:4} {line.what:40} {size / each_round:10.1f}  {100 * size / whole:5.1f} %"
            + (f"  {packets[line] / each_round:.2f} packets" if not line.what.endswith(MODEL) else "")
        )


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--partition", choices=["iid", "dirichlet"], action="append")
    parser.add_argument("--json", type=Path)
    options, extra = parser.parse_known_args()
    print(machine())
    print(f"95 %: the mean of {MEAN_OF} successive rounds")
    result = {}
    for partition in options.partition or ["iid", "dirichlet"]:
        runs = []
        for seed in range(options.seeds):
            runs.append(once(partition, seed, options.rounds, extra))
            print_run(partition, runs[-1], options.rounds)
        result[partition] = summarise(partition, runs, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
