"""What an examination finds: a name, how grave it is, what was found, and the mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

Level = Literal["ok", "skipped", "warning", "failed"]

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_WARNINGS: Final = 3
"""Nothing failed, and something should be looked at. (2 is the shell's word for wrong options.)"""

_GRAVITY: Final[dict[Level, int]] = {"ok": 0, "skipped": 0, "warning": 1, "failed": 2}
_EXITS: Final = (EXIT_OK, EXIT_WARNINGS, EXIT_FAILED)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the check; stable, for programs.
        level: ok, warning, failed; or skipped, and `found` says why.
        found: in words.
        mend: what to do about it; empty where there is nothing to do.
        took_s: how long it took to find out.
    """

    name: str
    level: Level
    found: str
    mend: str = ""
    took_s: float = 0.0

    def named(self, name: str, took_s: float) -> Finding:
        """The same, as the finding of a check."""
        return replace(self, name=name, took_s=round(took_s, 3))


def fine(found: str) -> Finding:
    """It is as it should be."""
    return Finding("", "ok", found)


def warning(found: str, mend: str) -> Finding:
    """It works, and should be looked at."""
    return Finding("", "warning", found, mend)


def failed(found: str, mend: str) -> Finding:
    """It does not work."""
    return Finding("", "failed", found, mend)


def skipped(why: str) -> Finding:
    """It was not looked at."""
    return Finding("", "skipped", why)


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level; ok where nothing was found."""
    return max((finding.level for finding in findings), key=_GRAVITY.__getitem__, default="ok")


def exit_code(findings: Iterable[Finding]) -> int:
    """0 where all is well, 1 where something failed, 3 where there are warnings only."""
    return _EXITS[_GRAVITY[worst(findings)]]


def plain(findings: Iterable[Finding], **about: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON can say
    """For programs: what is said of the whole, the verdict, and each finding."""
    listed = list(findings)
    level = worst(listed)
    return {
        **about,
        "verdict": "ok" if level == "skipped" else level,
        "findings": [asdict(finding) for finding in listed],
    }
