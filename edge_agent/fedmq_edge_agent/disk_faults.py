"""Why a disk does not take what is written, in four words that both the agent and its trainer use, and in sentences."""

from __future__ import annotations

import errno
from typing import Final, Literal, get_args

DiskFault = Literal["full", "quota", "read-only", "failing"]
"""No room; no room for this user; mounted so that nothing can be written; an error of the device, or any other."""

FAULTS: Final[tuple[DiskFault, ...]] = get_args(DiskFault)
ROOMY: Final[frozenset[DiskFault]] = frozenset({"full", "quota"})
"""What giving up files may mend."""

_PREFIX: Final = "disk-"
_OF: Final[dict[int, DiskFault]] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
}
_MENDS: Final[dict[DiskFault, str]] = {
    "full": "the disk is full; make room on it",
    "quota": "the disk quota of this user is used up; raise it, or make room",
    "read-only": "the disk is mounted read-only, as systems do after an error; check it, and mount it for writing",
    "failing": "the disk does not take what is written; look at its health and its permissions",
}


def fault_of(error: OSError) -> DiskFault:
    """Which fault an error of the system is."""
    return _OF.get(error.errno or 0, "failing")


def sentence(error: OSError, what: str) -> str:
    """What is wrong and what to do, in one line.

    Args:
        error: of the system.
        what: could not be written.
    """
    fault = fault_of(error)
    why = f" ({error.strerror})" if fault == "failing" and error.strerror else ""
    return f"{_MENDS[fault]}: cannot write {what}{why}"


def code_of(fault: DiskFault) -> str:
    """The code by which a trainer refuses what its disk did not take."""
    return _PREFIX + fault


def fault_in(code: str) -> DiskFault | None:
    """The fault that a trainer's code names; None: it names none."""
    return next((fault for fault in FAULTS if code == _PREFIX + fault), None)
