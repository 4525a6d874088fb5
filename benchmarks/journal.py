"""How fast the journal takes facts, against the disk itself: the same bytes appended to a plain file with an fsync.

    python benchmarks/journal.py --batches 200

A batch is what one turn of the coordinator's loop writes: accepted updates with their payloads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fedmq_coordinator.core.facts import UpdateAccepted, dump
from fedmq_coordinator.shell.store import Journal


def main() -> None:
    """Print a line for each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument(
        "--payload-bytes", type=int, default=7_000, help="as of 301,066 parameters at 2 %% density"
    )
    parser.add_argument("--dir", type=Path, default=None, help="a folder on the disk to be measured")
    options = parser.parse_args()
    print(f"{'updates a batch':>15} {'journal':>12} {'file+fsync':>12} {'ratio':>6} {'updates/s':>10}")
    for size in (1, 10, 100):
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            batch = [_update(number, options.payload_bytes) for number in range(size)]
            journal = Journal.open(Path(folder), federation="bench")
            ours = _median_s(lambda: journal.append(batch), options.batches)  # noqa: B023  # called at once
            journal.close()
            plain = b"".join(dump(fact)[1] for fact in batch)
            with (Path(folder) / "plain").open("ab", buffering=0) as file:
                bound = _median_s(lambda: _append(file.fileno(), plain), options.batches)  # noqa: B023  # likewise
        print(
            f"{size:>15} {ours * 1e3:>9.2f} ms {bound * 1e3:>9.2f} ms {ours / bound:>6.1f} {size / ours:>10,.0f}"
        )


def _append(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
    os.fsync(descriptor)


def _median_s(act: Callable[[], None], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _update(number: int, payload_bytes: int) -> UpdateAccepted:
    return UpdateAccepted(
        at=0.0,
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
        payload=os.urandom(payload_bytes),
        metrics={"loss": 0.5},
        evaluation=None,
        traffic=(1, 2),
    )


if __name__ == "__main__":
    main()
