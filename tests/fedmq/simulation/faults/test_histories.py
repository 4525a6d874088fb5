"""Histories with faults: none breaks, the same seed is the same history, and what breaks is shrunk and told."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmq.cli import cli
from fedmq.simulation.faults import runner
from fedmq.simulation.faults.drawing import draw_plan
from fedmq.simulation.faults.history import FEWEST_EVENTS, FEWEST_FAULTS, History
from fedmq.simulation.faults.plan import KINDS, DevicePlan, Fault, Plan
from fedmq.simulation.faults.shrink import fewest
from fedmq_coordinator.core.dedupe import SettledUpdates
from fedmq_protocol.errors import UsageError

DIGEST = """
import hashlib, sys
from fedmq.simulation.faults.drawing import draw_plan
from fedmq.simulation.faults.history import History
digest = hashlib.sha256()
for seed in (11, 12, 13):
    history = History(draw_plan(seed))
    history.run()
    for at, who, kind, what in history.witness.log:
        digest.update(f"{at!r} {who} {kind} {type(what).__name__}".encode())
    for kind, data in history.federation.coordinator.journal.rows:
        digest.update(kind.encode() + data)
print(digest.hexdigest())
"""


def test_a_few_histories() -> None:
    for seed in range(40):
        outcome = History(draw_plan(seed)).run()
        assert outcome.broken is None, (seed, outcome.broken)
        assert outcome.events >= FEWEST_EVENTS
        assert outcome.struck.total() >= FEWEST_FAULTS


@pytest.mark.parametrize("seed", [1_021_042, 4_010_792, 5_133_599])
def test_histories_that_have_broken_in_long_runs(seed: int) -> None:
    """A verdict forgotten, a run that nobody hears of, and a device that makes the very same update twice."""
    assert History(draw_plan(seed)).run().broken is None


def test_the_same_seed_is_the_same_history_in_any_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


def test_a_plan_is_data() -> None:
    for seed in range(20):
        plan = draw_plan(seed)
        again = Plan.load(plan.dump())
        assert again.dump() == plan.dump()
        assert again.faults == plan.faults
    first, second = (History(Plan.load(draw_plan(5).dump()), lengthen=False) for _ in range(2))
    assert first.run() == second.run()
    rows = [history.federation.coordinator.journal.rows for history in (first, second)]
    assert hashlib.sha256(repr(rows[0]).encode()).digest() == hashlib.sha256(repr(rows[1]).encode()).digest()


def test_every_kind_of_fault_is_drawn() -> None:
    assert {fault.kind for seed in range(60) for fault in draw_plan(seed).faults} == set(KINDS)


def test_what_is_not_needed_is_left_out() -> None:
    calls = []

    def holds(items: object) -> bool:
        calls.append(items)
        assert isinstance(items, list)
        return {3, 17} <= set(items)

    assert fewest(list(range(20)), holds) == [3, 17]
    assert len(calls) < 80
    assert fewest([1, 2, 3], lambda _: True) == []


def forgetful(self: SettledUpdates, counter: int, sha256: bytes) -> None:
    """A coordinator that counts whatever comes."""


def test_a_history_that_breaks_is_shrunk_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SettledUpdates, "find", forgetful)
    seed = next(seed for seed in range(200) if History(draw_plan(seed)).run().broken is not None)
    outcome, story = runner.replay(seed)
    assert outcome.broken is not None
    assert f"history {seed} breaks «{outcome.broken.invariant}»" in story
    assert "shrunk from" in story
    assert "journals UpdateAccepted(" in story
    smaller = Plan.load(story.rpartition("as data: ")[2])
    assert len(smaller.faults) < len(outcome.plan.faults)
    again = History(smaller, lengthen=False).run().broken
    assert again is not None
    assert again.invariant == outcome.broken.invariant


def test_the_command_counts_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    progress = tmp_path / "progress.json"

    def simulate(histories: int) -> dict[str, object]:
        arguments = [
            "--histories",
            str(histories),
            "--jobs",
            "1",
            "--seed",
            "7",
            "--resume",
            str(progress),
            "--json",
        ]
        result = CliRunner().invoke(cli, ["simulate", "faults", *arguments])
        assert result.exit_code == 0, result.output
        counted = json.loads(result.stdout)
        assert isinstance(counted, dict)
        return counted

    first = simulate(20)
    assert first["histories"] == 20
    assert json.loads(progress.read_text())["done"] == 20
    both = simulate(25)
    straight, failure = runner.run_histories(25, seed=7, jobs=1)
    assert failure is None
    for what in ("histories", "events", "struck", "facts"):
        assert both[what] == getattr(straight, what)
    progress.write_text(progress.read_text().replace(runner.code_digest(), "0" * 16))
    with pytest.raises(UsageError, match="written by other code"):
        runner.run_histories(25, seed=7, jobs=1, resume=progress)


@pytest.mark.parametrize("text", ["", "nothing", "[]", '{"modes": []}'])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, text: str) -> None:
    other = tmp_path / "other.json"
    other.write_text(text)
    with pytest.raises(UsageError, match="not written by --resume"):
        runner.run_histories(20, seed=7, jobs=1, resume=other)
    assert other.read_text() == text


def test_what_cannot_be_written_down_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        runner.run_histories(10**9, seed=7, jobs=1, resume=tmp_path / "none" / "progress.json")


def test_the_command_ends_at_what_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = runner.Failure(3, "never-lost", "how it went")
    monkeypatch.setattr(runner, "run_histories", lambda *_, **__: (runner.Tally(), failure))
    result = CliRunner().invoke(cli, ["simulate", "faults", "--histories", "20"])
    assert result.exit_code == 1
    assert "how it went" in result.stdout
    assert "fedmq simulate faults --replay 3" in result.stdout


def test_a_disk_that_fills_after_a_training_and_a_run_that_ends_before_it_has_room() -> None:
    """Its update was never committed nor sent, and goes with the run; so does the residual that belongs to it."""
    devices = tuple(DevicePlan(f"dev-{n}", 2.0, 4, 131_072, 0.0, 1.0, 0.0) for n in (1, 2))
    run = {"mode": "fedasync", "rounds": 1_000, "seed": 1, "strategy": {"publish_interval_s": 0.0}}
    run |= {"compression": {"start": "snapshot", "code_ms": 0, "coders": (), "density": 0.1}}
    refused = 0
    for training in range(1, 12):
        full = Fault("disk-full", "dev-1", training, what="training", seconds=400.0)
        plan = Plan(3, devices, 8, (run,), 1, 131_072, 20, 100, 0.05, stops_at=200, faults=(full,))
        history = History(plan, lengthen=False)
        outcome = history.run()
        assert outcome.broken is None, (training, outcome.broken)
        refused += history.federation.devices["dev-1"].disk.refused > 0
    assert refused > 5
