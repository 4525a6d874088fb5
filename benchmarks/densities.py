"""How rounds and bytes to 95 % depend on what of a change travels: densities, annealing, value codes, step length.

    make bench BENCH=densities ARGS="--seeds 5 --setting density=0.01,down_density=0.02,up=topk-sign"

Digits, MLP 64-512-512-10, ten devices, synchronous, in one process (see in_process.py), with the true lengths of what
the codecs made, and beside them the bytes of a device's messages that are not part of a model, as bytes_to_target
counts them on the wire. First weights are taken to come from a seed. Each run stands beside float32 both ways with the
same seed: `times` is how many times more bytes that moves until it has reached 95 % itself.

A setting is compression settings of a run, and `server_lr`; what it does not name is the default. With
`anneal=5,first_up=0.1,first_down=0.1` both densities fall geometrically over the first rounds; with `per_tensor=1` an
update takes its share of each tensor.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, Final

from benchmarks.accuracy import parse
from benchmarks.figures import first_at, machine, spread
from benchmarks.in_process import DEVICES, Compression, Densities, federate, settings_of

FLOAT32_ROUND: Final = 2 * 4 * 301_066 * DEVICES
MESSAGE_BYTES: Final = 1_500
"""Of a device and round, not part of a model: announcement, receipt, update's header, PUBACKs (bytes_to_target)."""
_OURS: Final = ("anneal", "first_up", "first_down", "per_tensor")


def to_target(
    partition: str, seed: int, compression: Compression | None, limit: int
) -> tuple[int | None, int, int]:
    """Rounds to 95 % (None: not within `limit`), and the updates' and deltas' bytes until then."""
    plain = {name: value for name, value in (compression or {}).items() if name not in _OURS}
    options, settings = settings_of(partition, seed, None if compression is None else plain)
    over = float((compression or {}).get("anneal", 0))
    last = Densities(settings.compression.density, settings.compression.down_density)
    first = Densities(
        float((compression or {}).get("first_up", last.up)),
        float((compression or {}).get("first_down", last.down)),
    )

    def annealed(number: int) -> Densities:
        way = min(1.0, (number - 1) / over) if over else 1.0
        return Densities(
            first.up ** (1 - way) * last.up**way,
            first.down ** (1 - way) * last.down**way,
            per_tensor=bool((compression or {}).get("per_tensor")),
        )

    accuracy: list[float] = []
    up = down = 0
    for outcome in federate(options, settings, annealed):
        accuracy.append(outcome.accuracy)
        up += outcome.up_bytes
        down += outcome.down_bytes
        if first_at(accuracy) is not None or outcome.number == limit:
            break
    return first_at(accuracy), up, down


def study(partition: str, seeds: int, limit: int, settings: list[str]) -> dict[str, Any]:
    """Every setting on every seed."""
    plain = [to_target(partition, seed, None, limit)[0] for seed in range(seeds)]
    print(f"{partition}: float32 needs {plain} rounds", flush=True)
    result: dict[str, Any] = {"float32_rounds": plain}
    for setting in settings:
        rounds, megabytes, times = [], [], []
        for seed in range(seeds):
            reached, up, down = to_target(partition, seed, parse(setting), limit)
            rounds.append(reached)
            theirs = plain[seed]
            if reached is None or theirs is None:
                continue
            moved = up + down + reached * DEVICES * MESSAGE_BYTES
            megabytes.append(moved / 1e6)
            times.append(theirs * FLOAT32_ROUND / moved)
        result[setting] = {"rounds": rounds, "megabytes": megabytes, "times": times}
        line = f"{partition}  {setting or 'defaults'}: rounds {rounds}"
        if times:
            line += (
                f", median {statistics.median(megabytes):.2f} MB, {spread(times, 0)} times less than float32"
            )
        print(line, flush=True)
    return result


def main() -> None:
    """Run the study, print it, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--partition", choices=["iid", "dirichlet"], action="append")
    parser.add_argument("--setting", action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine())
    result = {
        each: study(each, options.seeds, options.limit, options.setting or [""])
        for each in options.partition or ["iid", "dirichlet"]
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
