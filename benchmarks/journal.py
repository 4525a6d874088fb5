"""What durability costs: updates a second into the journal, one by one and in groups, against the disk's own fsync.

    python benchmarks/journal.py --seconds 5 --json FILE [--database postgresql://user@host/fedmq]

A group is what one turn of the coordinator's loop writes in one transaction: all updates that came while the one before
was under way. The bound is a plain file on the same disk: the same bytes written at once, and an fsync. All are timed
in turns within one run, so that ratios hold even where the disk's pace does not. With `--database`, the same facts go
into that database, too; it should be an empty one, for nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.figures import machine
from fedmq_coordinator.core.facts import Fact, UpdateAccepted, dump
from fedmq_coordinator.shell.settings import DatabaseSettings
from fedmq_coordinator.shell.store import Journal

SIZES: Final = {10_000: (1, 10, 100), 1_000_000: (1, 4, 16)}
"""Bytes of an update, and how many are written at once."""
_BOUND: Final = "file + fsync"


@dataclass(frozen=True)
class Figure:
    """One way to write updates of one size.

    Attributes:
        where: which database, or the plain file.
        update_bytes: of a payload.
        group: so many updates a transaction, or an fsync.
        times: so often.
        median_s: of a transaction.
        updates_per_s: at that median.
        bound: of it, as a share of what the plain file takes in the same groups.
    """

    where: str
    update_bytes: int
    group: int
    times: int
    median_s: float
    updates_per_s: float
    bound: float


def main() -> None:
    """Print a line for each way, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way")
    parser.add_argument("--dir", type=Path, default=None, help="a folder on the disk to be measured")
    parser.add_argument("--database", default=None, help="an empty PostgreSQL database, beside SQLite")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    figures = [
        figure
        for update_bytes, groups in SIZES.items()
        for group in groups
        for figure in measure(update_bytes, group, options.seconds, options.dir, options.database)
    ]
    print(
        f"{'':<12} {'update':>10} {'at once':>8} {'median':>10} {'updates/s':>10} {'of fsync':>9} {'grouping':>9}"
    )
    for each in figures:
        alone = next(
            f for f in figures if (f.where, f.update_bytes, f.group) == (each.where, each.update_bytes, 1)
        )
        gain = each.updates_per_s / alone.updates_per_s
        print(
            f"{each.where:<12} {each.update_bytes:>8,} B {each.group:>8} {each.median_s * 1e3:>7.2f} ms "
            f"{each.updates_per_s:>10,.0f} {each.bound:>8.0%} {gain:>8.1f}x"
        )
    if options.json is not None:
        found = {"machine": machine(), "figures": [asdict(each) for each in figures]}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(
    update_bytes: int, group: int, seconds: float, folder: Path | None, database: str | None
) -> list[Figure]:
    """Write groups of updates in each way, in turns, for some seconds each."""
    with tempfile.TemporaryDirectory(dir=folder) as place, contextlib.ExitStack() as stack:
        numbers = count()
        payload = os.urandom(update_bytes)
        ways: dict[str, Callable[[list[Fact]], None]] = {}
        file = stack.enter_context((Path(place) / "plain").open("ab", buffering=0))
        taken: dict[str, list[float]] = {_BOUND: []}
        sqlite = Journal.open(Path(place) / "sqlite", federation="bench")
        ways["SQLite"] = stack.enter_context(contextlib.closing(sqlite)).append
        if database is not None:
            settings = DatabaseSettings(url=database)
            server = Journal.open(Path(place) / "server", federation="bench", settings=settings)
            ways["PostgreSQL"] = stack.enter_context(contextlib.closing(server)).append
        taken |= {name: [] for name in ways}
        until = time.perf_counter() + seconds * len(taken)
        while time.perf_counter() < until or len(taken["SQLite"]) < 5:
            facts: list[Fact] = [_update(next(numbers), payload) for _ in range(group)]
            plain = b"".join(dump(fact)[1] for fact in facts)
            began = time.perf_counter()
            _append(file.fileno(), plain)
            taken[_BOUND].append(time.perf_counter() - began)
            for name, append in ways.items():
                began = time.perf_counter()
                append(facts)
                taken[name].append(time.perf_counter() - began)
    bound = statistics.median(taken[_BOUND])
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return [
        Figure(name, update_bytes, group, len(taken[name]), median, group / median, bound / median)
        for name, median in medians.items()
    ]


def _append(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
    os.fsync(descriptor)


def _update(number: int, payload: bytes) -> UpdateAccepted:
    return UpdateAccepted(
        at=float(number),
        run="bench",
        device=f"dev-{number}",
        counter=1,
        lease=1,
        base_version=0,
        staleness=0,
        weight=0.1,
        clip=1.0,
        norm=1.0,
        num_examples=100,
        duration_s=0.3,
        train_s=0.2,
        payload=payload,
        metrics={"loss": 0.5},
        evaluation=None,
        traffic=(1, 2),
    )


if __name__ == "__main__":
    main()
