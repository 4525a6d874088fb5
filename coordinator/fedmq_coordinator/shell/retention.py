"""The journal's retention, as a coordinator carries it out, and as `fedmq store gc` does."""

from __future__ import annotations

from collections.abc import Mapping

from fedmq_coordinator.core.facts import Evaluated, RunCreated, RunEnded, UpdateAccepted
from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.showing import best_version
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_rows import BULKY_FIELDS


def collect(
    journal: Journal,
    settings: RetentionSettings,
    *,
    best: Mapping[str, int | None],
    now: float,
    run: str | None = None,
) -> None:
    """Drop what the rule says, of one run or of all; see `Journal.plan`."""
    journal.drop(journal.plan(settings, best=best, now=now, run=run))


def best_versions(journal: Journal) -> dict[str, int | None]:
    """The best version of each run so far, out of the journal, as a running coordinator knows it.

    Raises:
        StoreError: the journal is damaged.
    """
    runs: dict[str, Run] = {}
    for fact in journal.read(kinds=["RunCreated", "Evaluated", "RunEnded"], leave_out=BULKY_FIELDS):
        if isinstance(fact, RunCreated):
            runs[fact.run] = Run(fact)
        elif isinstance(fact, Evaluated | RunEnded):
            runs[fact.run].apply(fact)
    for name, run in runs.items():
        if not run.over and not run.evaluations and run.settings.federated_evaluation:
            for fact in journal.read(run=name, kinds=["UpdateAccepted"], leave_out=BULKY_FIELDS):
                if isinstance(fact, UpdateAccepted):
                    run.judge(fact)
    return {name: best_version(run) for name, run in runs.items()}
