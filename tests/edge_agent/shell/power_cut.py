"""Every state in which a power cut may leave a folder: a recorder of what is done to it, and a file system's whims.

As POSIX has it, what is flushed stays: a file's bytes by its own fsync, a name (made, moved or removed) by its
folder's. Of the rest each name for itself is as it was or as it is now, in whatever order the changes were made; and
the bytes are there, lost, zeros, half there, or cut off.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes | None]
"""By path within the folder: the bytes of a file, None for a folder."""

_HOOKED = (
    *("open", "fsync", "replace", "rename", "link", "unlink", "rmdir", "mkdir"),
    *("pwrite", "truncate", "ftruncate", "posix_fallocate"),
)
_MODES = ("there", "lost", "zeros", "half", "cut")
_EACH = "each for itself"
_RANDOM_SUBSETS = 2


@dataclass(frozen=True)
class Moment:
    """How things stood after one call.

    Attributes:
        what: was called, and on what.
        names: file or folder, by path: a number of its own.
        data: the bytes of each file, by its number.
        flushed_data: likewise, as of its last fsync.
        flushed_names: as of the last fsync of the folder that each is in.
        notes: how many notes had been made.
    """

    what: str
    names: dict[str, int]
    data: dict[int, bytes]
    flushed_data: dict[int, bytes]
    flushed_names: dict[str, int]
    notes: int


@dataclass
class Recorder:
    """Looks at a folder after each call that changes anything in it.

    Attributes:
        folder: which.
        moments: what was seen.
        notes: what others had to say meanwhile.
    """

    folder: Path
    moments: list[Moment] = field(default_factory=list)
    notes: list[tuple[str, Any]] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.RLock)
    _inodes: dict[int, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _flushed_data: dict[int, bytes] = field(default_factory=dict)
    _flushed_names: dict[str, int] = field(default_factory=dict)
    _busy: bool = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hook into `os` and `io`."""
        for name in _HOOKED:
            monkeypatch.setattr(os, name, self._hooked(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self._hooked("io.open", io.open))

    def note(self, kind: str, what: Any = None) -> None:
        """Something that must be true of every later state."""
        with self._lock:
            self.notes.append((kind, what))
            self._look(kind)

    def _hooked(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(*args: Any, **kwargs: Any) -> Any:
            if self._busy and threading.current_thread() is self._owner:
                return call(*args, **kwargs)
            with self._lock:
                flushed = self._of(args[0]) if name == "fsync" else None
                result = call(*args, **kwargs)
                self._look(f"{name} {args[0]}", flushed)
                return result

        return hooked

    _owner: threading.Thread | None = None

    def _of(self, descriptor: int) -> Path:
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    def _look(self, what: str, flushed: Path | None = None) -> None:
        self._busy, self._owner = True, threading.current_thread()
        try:
            names, data, inodes = dict[str, int](), dict[int, bytes](), dict[int, int]()
            for path in sorted(self.folder.rglob("*")) if self.folder.exists() else []:
                inode = path.lstat().st_ino
                number = self._inodes.get(inode)
                if number is None:
                    number = next(self._numbers)
                inodes[inode] = number
                names[str(path.relative_to(self.folder))] = number
                if path.is_file():
                    data[number] = path.read_bytes()
            self._inodes = inodes
            if flushed is not None:
                self._flush(flushed, names, data)
            last = self.moments[-1] if self.moments else None
            moment = Moment(
                what, names, data, dict(self._flushed_data), dict(self._flushed_names), len(self.notes)
            )
            if last is None or (last.names, last.data, last.flushed_data, last.flushed_names, last.notes) != (
                moment.names,
                moment.data,
                moment.flushed_data,
                moment.flushed_names,
                moment.notes,
            ):
                self.moments.append(moment)
        finally:
            self._busy = False

    def _flush(self, flushed: Path, names: dict[str, int], data: dict[int, bytes]) -> None:
        if flushed != self.folder and self.folder not in flushed.parents:
            return
        place = str(flushed.relative_to(self.folder))
        if flushed.is_dir():
            gone = [name for name in self._flushed_names if str(Path(name).parent) == place]
            for name in gone:
                del self._flushed_names[name]
            self._flushed_names |= {
                name: number for name, number in names.items() if str(Path(name).parent) == place
            }
        elif place in names:
            self._flushed_data[names[place]] = data[names[place]]


def _torn(now: bytes, flushed: bytes, how: str) -> bytes:
    half = len(now) // 2
    match how:
        case "there":
            return now
        case "lost":
            return flushed
        case "zeros":
            return bytes(len(now))
        case "half":
            return now[:half] + bytes(len(now) - half)
        case _:
            return now[:half]


def _choices(unsettled: list[str], rng: random.Random) -> Iterator[frozenset[str]]:
    """Which of the names that were not flushed are as they are now."""
    everything = frozenset(unsettled)
    yield frozenset()
    yield everything
    for name in unsettled:
        yield frozenset({name})
        yield everything - {name}
    for _ in range(_RANDOM_SUBSETS if len(unsettled) > 2 else 0):  # all others were yielded
        yield frozenset(name for name in unsettled if rng.random() < 0.5)


def left_behind(moment: Moment, rng: random.Random) -> Iterator[tuple[str, Tree]]:
    """What a power cut at this moment may leave: in words, and the folder."""
    names, flushed = moment.names, moment.flushed_names
    unsettled = sorted(name for name in {*names, *flushed} if names.get(name) != flushed.get(name))
    for now in _choices(unsettled, rng):
        found = {name: number for name, number in flushed.items() if name not in now}
        found |= {name: names[name] for name in now if name in names}
        there = {name: number for name, number in found.items() if _reachable(name, found)}
        modes = (*_MODES, _EACH, _EACH) if now in {frozenset(unsettled), frozenset()} else ("there", _EACH)
        for mode in modes:
            tree: Tree = {}
            torn = False
            for name, number in there.items():
                if number not in moment.data and number not in moment.flushed_data:
                    tree[name] = None
                    continue
                kept = moment.flushed_data.get(number, b"")
                latest = moment.data.get(number, kept)
                torn = torn or latest != kept
                tree[name] = (
                    latest
                    if latest == kept
                    else _torn(latest, kept, mode if mode in _MODES else rng.choice(_MODES))
                )
            yield f"at {moment.what}, names {sorted(now)} new, bytes {mode}", tree
            if not torn:
                break


def _reachable(name: str, found: dict[str, int]) -> bool:
    return all(str(parent) in found for parent in Path(name).parents if str(parent) != ".")


def lay_out(tree: Tree, folder: Path) -> None:
    """Make a folder of a tree."""
    folder.mkdir()
    for name, data in sorted(tree.items()):
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)
