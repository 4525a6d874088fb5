"""Which large bytes of a run may go: a rule over what its facts say. Facts themselves never go.

A *stretch* is a version that was published with a snapshot, and those that lead on from it up to the next snapshot: any
of them is rebuilt from the stretch alone. An *anchor* is a version whose private full-precision weights are there: a
replay can begin at it. The *floor* is the anchor from which on everything is kept: the newest one that is at least
`updates_days` old. No floor, nothing goes.

    private weights            before the floor                       a replay begins there
    payloads of updates        before the last step before the floor  the floor's weights hold them
    first weights              once there is a floor
    snapshots and deltas       stretches that ended more than `versions_days` ago, but for the newest, the one with the
                               best version, and whatever is not before the floor

So a replay, a device that catches up, and an export of a run's newest and best version find what they need at any time,
whatever the settings are and were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

DAY_S: Final = 86_400.0

Days = Annotated[float, Field(ge=0)]


class RetentionSettings(BaseModel):
    """For how long what nothing needs is kept all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions_days: Days = 90.0
    """So long any published version can be exported; then a run's newest and best alone. Infinite: for ever."""
    updates_days: Days = 0.0
    """So long updates' payloads are kept once a snapshot holds what they did, for an audit. Infinite: for ever."""


@dataclass(frozen=True)
class Publication:
    """A published version.

    Attributes:
        seq: its fact's number in the journal.
        version: which.
        at: when, in seconds since the epoch.
        is_base: it has a snapshot.
        is_anchor: its private weights are there.
    """

    seq: int
    version: int
    at: float
    is_base: bool
    is_anchor: bool


@dataclass(frozen=True)
class Stretch:
    """The facts of a snapshot and of the versions that lead on from it, by their first and last number."""

    first: int
    last: int


def floor(published: Sequence[Publication], settings: RetentionSettings, *, now: float) -> Publication | None:
    """From where on everything of a run is kept, or None if nothing may go."""
    until = now - settings.updates_days * DAY_S
    old_enough = (each for each in reversed(published) if each.is_anchor and each.at <= until)
    return next(old_enough, None)


def lines(floor: Publication, *, created: int, last_step: int) -> dict[str, int]:
    """For each of a run's fields that go below a line, the number of the first fact that keeps its bytes.

    Args:
        floor: from where on everything is kept.
        created: the number of the fact that made the run.
        last_step: that of the last step before the floor; 0 if there was none. What came after it waited in the
            accumulator, and is not in the floor's weights.
    """
    return {"private": floor.seq, "payload": last_step, "initial": created + 1}


def needless(
    published: Sequence[Publication],
    settings: RetentionSettings,
    *,
    floor: Publication,
    best: int | None,
    now: float,
) -> list[Stretch]:
    """The stretches whose snapshots and deltas may go.

    Args:
        published: all versions of a run, in order.
        settings: for how long they are kept.
        floor: from where on everything is.
        best: the best version so far.
        now: seconds since the epoch.
    """
    until = now - settings.versions_days * DAY_S
    stretches = list(_stretches(published))
    return [
        Stretch(versions[0].seq, versions[-1].seq)
        for versions in stretches[:-1]
        if versions[-1].at <= until
        and versions[-1].seq < floor.seq
        and best not in {each.version for each in versions}
    ]


def _stretches(published: Sequence[Publication]) -> Iterator[list[Publication]]:
    versions: list[Publication] = []
    for each in published:
        if each.is_base and versions:
            yield versions
            versions = []
        versions.append(each)
    if versions:
        yield versions
