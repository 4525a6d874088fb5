"""A thousand histories, as many processes as there are cores. More: HISTORIES=10000 make test."""

from __future__ import annotations

import os

import pytest

from fedmq.simulation.faults import runner
from fedmq.simulation.faults.history import FEWEST_EVENTS, FEWEST_FAULTS
from fedmq.simulation.faults.plan import KINDS

HISTORIES = int(os.environ.get("HISTORIES", "1000"))


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_no_history_breaks() -> None:
    tally, failure = runner.run_histories(HISTORIES, seed=100_000, jobs=os.cpu_count() or 1)
    assert failure is None, f"{failure.story}\nfedmq simulate faults --replay {failure.seed}"
    assert tally.histories == HISTORIES
    assert (tally.fewest_events or 0) >= FEWEST_EVENTS
    assert (tally.fewest_faults or 0) >= FEWEST_FAULTS
    if HISTORIES >= 1_000:
        assert set(tally.struck) == set(KINDS)
        assert tally.facts["accepted"] > 5 * HISTORIES
        assert tally.facts["restored"] > 0
        assert tally.facts["messages dropped from full queues"] > 0
