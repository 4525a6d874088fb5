"""How long parts take to be back at work after a start, as seen from outside."""

from __future__ import annotations

import datetime as dt
import re
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chaos.actors import Actor
from tests.chaos.stage import Stage
from tests.chaos.witness import COORDINATOR

_IMPORTED: Final = re.compile(r"^(\S+ \S+) info +starting the coordinator", re.MULTILINE)
_STAMP: Final = "%Y-%m-%d %H:%M:%S,%f"


@dataclass
class Life:
    """One start of one process. Times are seconds of the monotonic clock.

    Attributes:
        undisturbed: nothing else was wrong until the first word.
        imported: when it had its modules, by its own log.
        word: the first that the others hear: `online`; for a broker, the coordinator's.
        work: the first receipt `accepted` after that.
    """

    actor: Actor
    start: float
    wall: float
    number: int
    undisturbed: bool = True
    imported: float | None = None
    word: float | None = None
    work: float | None = None


@dataclass
class Recoveries:
    """Watches lives begin."""

    stage: Stage
    lives: list[Life] = field(default_factory=list)

    def started(self, actor: Actor) -> None:
        """A process was started again."""
        self.lives.append(Life(actor, actor.starts[-1], time.time(), len(actor.starts)))

    def look(self) -> None:
        """Note what has come true since the last look."""
        for life in self.lives:
            if life.work is None and life.number == len(life.actor.starts):
                self._look_at(life)

    def _look_at(self, life: Life) -> None:
        name, witness = life.actor.name, self.stage.witness
        speaker = COORDINATOR if name == "broker" else name
        if life.word is None:
            needed = {name, speaker, "broker"}
            good = all(self.stage.actors[each].state == "up" for each in needed)
            life.undisturbed &= (
                good and self.stage.doors[speaker].is_good if speaker in self.stage.doors else good
            )
            said = witness.news.get((speaker, "online"), 0.0)
            if said > life.start:
                life.word = said
                life.imported = self._imported(life)
        if life.word is not None:
            of = [
                at
                for update, at in list(witness.accepted_at.items())[-50:]
                if at > life.word and (name in {COORDINATOR, "broker"} or update[0] == name)
            ]
            life.work = min(of, default=None)

    def _imported(self, life: Life) -> float | None:
        """When a coordinator's log says that its modules are there, on the monotonic clock."""
        found = _IMPORTED.search(life.actor.words()) if life.actor.name == COORDINATOR else None
        if found is None:
            return None
        stamp = dt.datetime.strptime(found[1], _STAMP).astimezone().timestamp()
        return life.start + (stamp - life.wall)

    def table(self) -> dict[str, dict[str, Any]]:
        """By kind: how many starts, and seconds: median and longest."""
        rows: dict[str, dict[str, Any]] = {}
        for kind in (COORDINATOR, "broker", "device"):
            lives = [life for life in self.lives if life.actor.name.startswith(kind[:3])]
            good = [life for life in lives if life.undisturbed and life.word is not None]
            rows[kind] = {
                "starts": len(lives),
                "undisturbed": len(good),
                "imports_s": _spread([life.imported - life.start for life in good if life.imported]),
                "to_first_word_s": _spread([life.word - life.start for life in good if life.word]),
                "from_imports_to_first_word_s": _spread(
                    [life.word - life.imported for life in good if life.word and life.imported]
                ),
                "to_first_accepted_s": _spread([life.work - life.start for life in good if life.work]),
                "from_imports_to_first_accepted_s": _spread(
                    [life.work - life.imported for life in good if life.work and life.imported]
                ),
            }
        return rows


def _spread(values: list[float]) -> dict[str, float] | None:
    """Median, 95th percentile and the largest, to a millisecond."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "worst": round(ordered[-1], 3),
        "of": len(ordered),
    }
