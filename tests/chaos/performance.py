"""One run from the curtain to the reckoning: build, let things happen, let all come back, end, audit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.chaos import ground
from tests.chaos.audit import Audit
from tests.chaos.director import Director
from tests.chaos.stage import FEDERATION, RUN, Stage

_FIRST_S: Final = 180.0
_BACK_S: Final = 240.0
_SIGTERM: Final = -15


@dataclass(frozen=True)
class Plan:
    """What is to be played.

    Attributes:
        kills: so many processes are killed.
        seed: of the schedule.
        devices: agents at first; one more may join.
        pace_s: mean time between two misfortunes.
        profile: of the run; see `stage.PROFILES`.
        persistent: Mosquitto saves what it retains.
        train_s: the longest that a training takes.
    """

    kills: int = 200
    seed: int = 1
    devices: int = 4
    pace_s: float = 3.0
    profile: str = "exact"
    persistent: bool = False
    train_s: float = 0.6


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        stage: as it was left; all have ended.
        faults: each a sentence.
        figures: what was counted and measured.
    """

    stage: Stage
    faults: list[str]
    figures: dict[str, Any]


async def perform(plan: Plan, folder: Path) -> Outcome:
    """Play a plan in an empty folder; small disks stay mounted until `Stage.unmount`."""
    stage = Stage(
        folder,
        devices=plan.devices,
        profile=plan.profile,
        persistent=plan.persistent,
        train_s=plan.train_s,
    )
    director = Director(stage, plan.seed, pace_s=plan.pace_s, most_devices=plan.devices + 1)
    faults, figures = director.faults, dict[str, Any]()
    began = time.monotonic()
    try:
        await stage.open()
        await stage.until(lambda: stage.num_accepted >= plan.devices, _FIRST_S)
        await director.play(plan.kills)
        await _come_back(stage, figures, faults)
        codes = await stage.end()
        faults += [f"{name} ended with {code}" for name, code in codes.items() if code not in {0, _SIGTERM}]
        found = audit_of(stage).carry_out()
        faults += found.faults
        figures |= found.figures
    except TimeoutError:
        faults.append(f"nothing was accepted in the first {_FIRST_S:g} s")
    finally:
        await stage.close()
        (folder / "story.txt").write_text("\n".join(director.story) + "\n")
    figures |= {
        "seconds": round(time.monotonic() - began),
        "kills": director.num_kills,
        "happened": dict(sorted(director.told.items())),
        "recovery": director.recoveries.table(),
        "memory_mb": director.memory(),
        "left_over": _left_over(stage),
        "namespaces": ground.is_inside(),
        "netem": ground.has_netem(),
    }
    return Outcome(stage, faults, figures)


async def _come_back(stage: Stage, figures: dict[str, Any], faults: list[str]) -> None:
    """With nothing wrong any more, every device delivers something new, and new versions appear."""
    stage.mend()
    calm = time.monotonic()
    newest = max(stage.witness.versions, default=0)

    def missing() -> set[str]:
        back = {name[0] for name, at in stage.witness.accepted_at.items() if at > calm}
        return set(stage.device_names) - back

    try:
        await stage.until(lambda: not missing() and max(stage.witness.versions) >= newest + 3, _BACK_S)
    except TimeoutError:
        who = ", ".join(sorted(missing())) or "no new version"
        faults.append(f"{_BACK_S:g} s after the last misfortune {who} had not come back to work")
    figures["all_back_after_s"] = round(time.monotonic() - calm, 1)


def audit_of(stage: Stage) -> Audit:
    """The reckoning of what a stage has left."""
    names = [name for name in stage.device_names if (stage.device_dir(name) / "state").exists()]
    return Audit(
        federation=FEDERATION,
        run=RUN,
        state_dir=stage.state_dir,
        devices={name: stage.device_dir(name) for name in names},
        ledgers={name: stage.ledger(name) for name in names},
        wide={name for name in names if int(name.removeprefix("dev-")) % 2 == 0},
        witness=stage.witness,
        exact=stage.profile == "exact",
    )


def _left_over(stage: Stage) -> list[str]:
    """What lies in the folders and was meant for a while only; all have ended well."""
    folders = [stage.state_dir, *map(stage.device_dir, stage.device_names)]
    found = [path for folder in folders for path in folder.rglob("*.tmp")]
    found += [*(stage.folder / "tmp").iterdir(), *stage.state_dir.glob("lent-*")]
    return sorted(str(path.relative_to(stage.folder)) for path in found)
