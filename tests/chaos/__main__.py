"""Chaos on real processes: kills, pauses, bad networks, full disks, a forgetful broker; then a reckoning.

    python -m tests.chaos --kills 200 --seed 1          a long run
    python -m tests.chaos --kills 12 --pace 0.6         a short one

Exit code 0: nothing was lost, nothing came twice, and everybody came back. Else what was wrong is printed, and the
folder stays; what happened when is in `story.txt` there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from fedmq_broker.mosquitto import find_mosquitto
from tests.chaos import ground
from tests.chaos.performance import Plan, perform
from tests.chaos.stage import PROFILES

_SHOWN = 50


def main() -> int:
    """Run it, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--pace", type=float, default=3.0, help="mean seconds between two misfortunes")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="exact")
    parser.add_argument("--persistent", action="store_true", help="Mosquitto saves what it retains")
    parser.add_argument("--train-s", type=float, default=0.6, help="the longest that a training takes")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a good run, too")
    options = parser.parse_args()
    if find_mosquitto() is None:
        sys.stderr.write(
            "mosquitto is not installed (apt-get install mosquitto, or brew install mosquitto)\n"
        )
        return 2
    ground.enter()
    plan = Plan(
        kills=options.kills,
        seed=options.seed,
        devices=options.devices,
        pace_s=options.pace,
        profile=options.profile,
        persistent=options.persistent,
        train_s=options.train_s,
    )
    folder = Path(tempfile.mkdtemp(prefix="fedmq-chaos-"))
    outcome = asyncio.run(perform(plan, folder))
    figures = {"plan": vars(plan), "faults": outcome.faults} | outcome.figures
    text = json.dumps(figures, indent=1)
    sys.stdout.write(text + "\n")
    if options.json is not None:
        options.json.write_text(text + "\n")
    if not ground.is_inside():
        sys.stdout.write("no namespaces here: neither cables nor full disks were tried\n")
    for fault in outcome.faults[:_SHOWN]:
        sys.stdout.write(f"WRONG: {fault}\n")
    if outcome.faults or options.keep:
        kept = Path(tempfile.mkdtemp(prefix="fedmq-chaos-kept-"))
        shutil.copytree(folder, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.socket"))
        sys.stdout.write(f"what it left: {kept}\n")
    outcome.stage.unmount()
    shutil.rmtree(folder)
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
