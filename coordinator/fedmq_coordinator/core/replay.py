"""From the journal back to the state, computing of the model only what no later snapshot makes needless."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedmq_coordinator.core.blobs import Blob
from fedmq_coordinator.core.facts import Fact, StepTaken, VersionPublished


def steps_before_snapshot(facts: Iterable[Fact], before: Mapping[str, int]) -> dict[str, int]:
    """For each run, how many steps its newest snapshot holds already.

    Updates that were accepted after the last of these steps, even before the snapshot, still wait in the accumulator,
    so their bytes are needed; those before are not. `before`: how many steps each run has taken before these facts.
    """
    steps = dict(before)
    held: dict[str, int] = {}
    for fact in facts:
        match fact:
            case StepTaken():
                steps[fact.run] = steps.get(fact.run, 0) + 1
            case VersionPublished(private=Blob()):
                held[fact.run] = steps.get(fact.run, 0)
            case _:
                pass
    return held
