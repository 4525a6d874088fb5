"""Coverage-guided fuzzing of everything that reads bytes from outside, by atheris (libFuzzer).

    python -m tests.fuzz run TARGET --runs 1000000      go on from the corpus; new finds are added to --found
    python -m tests.fuzz seeds                          write the first inputs anew, good ones of every kind
    python -m tests.fuzz replay                         what was found, without instruments, and its slowest
    python -m tests.fuzz all --runs 10000000            share the executions out over all targets, one after the other

An execution fails if anything but the protocol's own errors comes out, if it takes more than ten seconds with the
instruments in the code, or if the process passes the target's bound on memory. libFuzzer then writes the input to a
file and ends with a trace. Without instruments no input may take a second: `replay` holds what was found to that, and
the tests the corpus. A run that is cut off goes on from what it has found. atheris is in the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
_SECONDS_AN_EXECUTION = 10
SHARES = {
    "payload": 28,
    "long_payload": 2,
    "body": 15,
    "blob": 13,
    "envelope": 10,
    "broker": 10,
    "stored": 8,
    "chunks": 5,
    "topic": 5,
    "agent": 2,
    "coordinator": 2,
}
"""Hundredths of the executions; the machines take long, and reach deep."""


def fuzz(name: str, runs: int, found: Path) -> None:
    """Fuzz one target in this process, which does not come back from it."""
    import atheris  # noqa: PLC0415  # only here is it needed

    with atheris.instrument_imports(
        include=["fedmq_protocol", "fedmq_coordinator", "fedmq_edge_agent", "fedmq_broker"]
    ):
        from tests.fuzz.mutator import mutate  # noqa: PLC0415  # with what it imports, as the next
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415  # instrumented while it is imported
    target = TARGETS[name]
    folder = found / name
    folder.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-runs={runs}",
        f"-timeout={_SECONDS_AN_EXECUTION}",
        f"-rss_limit_mb={target.rss_mb}",
        f"-max_len={target.max_bytes}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
    ]
    ways = {}
    if target.value_at is not None:

        def mutate_bytes(data: bytes, max_size: int) -> bytes:
            changed: bytes = atheris.Mutate(data, max_size)  # another function before Fuzz() than after
            return changed

        ways["custom_mutator"] = mutate(target.value_at, mutate_bytes)
    atheris.Setup([sys.argv[0], *flags, str(folder), str(CORPUS / name)], target.run, **ways)
    atheris.Fuzz()


def fuzz_all(runs: int, found: Path, log: Path) -> int:
    """Fuzz every target in a process of its own; a line each goes into the log."""
    failed = 0
    for name, share in SHARES.items():
        began = time.monotonic()
        command = [sys.executable, "-m", "tests.fuzz", "run", name, "--runs", str(runs * share // 100)]
        done = subprocess.run(  # ourselves
            [*command, "--found", str(found)], capture_output=True, text=True, check=False, errors="replace"
        )
        stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
        line = (
            f"{name}: {stats.get('number_of_executed_units', '?')} executions in {time.monotonic() - began:.0f} s, "
            f"slowest {stats.get('slowest_unit_time_sec', '?')} s, peak {stats.get('peak_rss_mb', '?')} MB, "
            f"{'ok' if done.returncode == 0 else f'FAILED ({done.returncode})'}"
        )
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        if done.returncode:
            failed += 1
            sys.stdout.write(done.stderr[-4_000:])
    return failed


def replay(found: Path) -> int:
    """Run what was found, and the corpus, without instruments; whether each kept to a second."""
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415  # not instrumented here

    slow = 0
    for name, target in TARGETS.items():
        inputs = [file for folder in (found, CORPUS) for file in sorted((folder / name).glob("*"))]
        seconds = 0.0
        for file in inputs:
            began = time.process_time()
            target.run(file.read_bytes())
            seconds = max(seconds, time.process_time() - began)
        slow += seconds > 1
        sys.stdout.write(f"{name}: {len(inputs)} inputs, the slowest {1e3 * seconds:.0f} ms\n")
    return min(1, slow)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n", 1)[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run", help="fuzz one target")
    one.add_argument("target", choices=sorted(SHARES))
    every = verbs.add_parser("all", help="fuzz all targets")
    again = verbs.add_parser("replay", help="run what was found without instruments")
    for verb in (one, every):
        verb.add_argument("--runs", type=int, default=100_000)
    for verb in (one, every, again):
        verb.add_argument("--found", type=Path, default=Path("build/fuzz"), help="where finds are kept")
    every.add_argument("--log", type=Path, default=Path("build/fuzz.log"))
    verbs.add_parser("seeds", help="write the first inputs")
    given = parser.parse_args()
    match given.verb:
        case "run":
            fuzz(given.target, given.runs, given.found)
        case "all":
            given.log.parent.mkdir(parents=True, exist_ok=True)
            return min(1, fuzz_all(given.runs, given.found, given.log))
        case "replay":
            return replay(given.found)
        case _:
            from tests.fuzz.seeds import write  # noqa: PLC0415  # its imports are many

            write(CORPUS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
