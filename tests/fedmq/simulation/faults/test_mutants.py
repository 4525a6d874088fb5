"""Planted bugs are found; without them the same histories are sound."""

from __future__ import annotations

import pytest

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


def test_the_code_is_as_it_was() -> None:
    before = SettledUpdates.find
    hunt(next(mutant for mutant in MUTANTS if mutant.name == "no dedupe"), histories=1)
    assert SettledUpdates.find is before
