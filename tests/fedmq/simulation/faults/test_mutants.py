"""Planted bugs are found; without them the same histories are sound."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from fedmq.cli import cli
from fedmq.simulation.faults import mutants
from fedmq.simulation.faults.drawing import draw_plan
from fedmq.simulation.faults.history import History
from fedmq.simulation.faults.mutants import MUTANTS, Mutant, hunt
from fedmq_coordinator.core.dedupe import SettledUpdates


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_it_is_found(mutant: Mutant) -> None:
    found = hunt(mutant, histories=300)
    assert found.invariant, f"{mutant.name} lives: {mutant.text}"
    assert History(draw_plan(found.seed)).run().broken is None, "the history breaks without it, too"


def test_the_command_tells_of_each_and_fails_where_one_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = Mutant("harmless", "changes nothing", ())
    monkeypatch.setattr(mutants, "MUTANTS", (MUTANTS[1], harmless))
    result = CliRunner().invoke(cli, ["simulate", "mutants", "--histories", "2", "--json"])
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [(each["mutant"], each["invariant"]) for each in told] == [
        (MUTANTS[1].name, "journal-first"),
        ("harmless", ""),
    ]
    result = CliRunner().invoke(cli, ["simulate", "mutants", "--histories", "2"])
    assert "NOT FOUND" in result.stdout


def test_the_code_is_as_it_was() -> None:
    before = SettledUpdates.find
    hunt(next(mutant for mutant in MUTANTS if mutant.name == "no dedupe"), histories=1)
    assert SettledUpdates.find is before
