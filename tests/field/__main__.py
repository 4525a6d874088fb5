"""The long way, PyTorch included: `python -m tests.field --arch arm64`; run by root, with debootstrap and Mosquitto.

The first time it makes a clean system of that architecture, and fetches wheels. Another architecture than this
machine's runs by qemu-user, whose times say nothing of a board's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.field.proof import SUMS, Board, ProofError, prove
from tests.field.systems import clean_system


def main() -> int:
    """Run the proof, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=["arm64", "x86-64"], default="x86-64")
    parser.add_argument("--way", choices=["bundle", "sdcard"], default="bundle", help="how it is flashed")
    parser.add_argument("--task", default=SUMS, help="what is trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--patience", type=float, default=1.0, help="all time limits times this")
    arguments = parser.parse_args()
    system = clean_system(arguments.arch)
    patience = arguments.patience * (1.0 if arguments.arch == "x86-64" else 20.0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedmq-field-", dir="/var/tmp") as scratch:
        folders = [Path(scratch) / name for name in ("operator", "system", "kept")]
        for folder in folders:
            folder.mkdir()
        board = Board(system, arguments.arch, arguments.way, keep=folders[2])
        try:
            prove(
                folders[0],
                board,
                folders[1],
                task=arguments.task,
                rounds=arguments.rounds,
                density=arguments.density,
                patience=patience,
            )
        except ProofError as error:
            print(error, file=sys.stderr)  # noqa: T201 - a program
            return 1
    print(f"the whole way took {time.monotonic() - began:.0f} s")  # noqa: T201 - a program
    return 0


if __name__ == "__main__":
    sys.exit(main())
