"""What processes have resident, by the kernel's books, sampled while they work. Linux alone has these books."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

_SAMPLE_S: Final = 0.2
_PSS_S: Final = 1.0
"""The kernel walks all pages for it: not too often."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, or of several that do one thing.

    Attributes:
        rss: all that is resident: what is the process's own, and pages of files that it has mapped.
        anonymous: of these, what is in no file: heap and stacks.
        pss: like `rss`, but of pages that several processes have, each counts its share.
    """

    rss: int = 0
    anonymous: int = 0
    pss: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.anonymous + other.anonymous, self.pss + other.pss)

    def most(self, other: Memory) -> Memory:
        """The larger of each."""
        return Memory(
            max(self.rss, other.rss), max(self.anonymous, other.anonymous), max(self.pss, other.pss)
        )


@dataclass
class Peaks(threading.Thread):
    """The most that each group of processes had resident at one moment, from `start` to `stop`.

    Args:
        groups: gives the processes of each group by its name, whenever it is asked.
    """

    groups: Callable[[], dict[str, list[int]]]
    peaks: dict[str, Memory] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        due = 0.0
        while not self._ended.wait(_SAMPLE_S):
            with_pss = time.monotonic() >= due
            due = time.monotonic() + _PSS_S if with_pss else due
            for name, pids in self.groups().items():
                now = sum((read(pid, with_pss=with_pss) for pid in pids), Memory())
                self.peaks[name] = self.peaks.get(name, Memory()).most(now)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def read(pid: int, *, with_pss: bool = True) -> Memory:
    """What a process has now; nothing if it is gone."""
    try:
        status = _kilobytes(Path(f"/proc/{pid}/status"), ("VmRSS", "RssAnon"))
        pss = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), ("Pss",)) if with_pss else {}
    except OSError:
        return Memory()
    return Memory(status.get("VmRSS", 0), status.get("RssAnon", 0), pss.get("Pss", 0))


def high_water(pid: int) -> int:
    """The most bytes that a process ever had resident, between samples too; 0 if it is gone."""
    try:
        return _kilobytes(Path(f"/proc/{pid}/status"), ("VmHWM",)).get("VmHWM", 0)
    except OSError:
        return 0


def below(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kilobytes(path: Path, names: Iterable[str]) -> dict[str, int]:
    found = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in names:
            found[name] = int(rest.split()[0]) * 1024
    return found
