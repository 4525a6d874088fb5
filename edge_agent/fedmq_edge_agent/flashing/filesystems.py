"""Files inside an image, without mounting it and without being root: ext4 by e2fsprogs, FAT by mtools.

Nothing is mounted, so that a kill leaves nothing mounted; what it leaves half written, the next `Ext.repair` mends.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.partitions import Partition

_PATH: Final = re.compile(r"^/[A-Za-z0-9@._/+-]*$")
_FSCK_FAILED: Final = 4
# Inode 0 is a name that was removed.
_LISTED: Final = re.compile(
    r"^/[1-9]\d*/(?P<mode>\d+)/(?P<uid>\d+)/(?P<gid>\d+)/(?P<name>[^/]*)/(?P<size>\d*)/"
)


@dataclass(frozen=True)
class Entry:
    """What is said of one name in a folder; `mode` has the kind of file in it, as `stat` has it."""

    name: str
    mode: int
    owner: tuple[int, int]
    size: int


@dataclass(frozen=True)
class Put:
    """A file to be written, as a whole."""

    path: str
    content: bytes | Path
    mode: int = 0o644


@dataclass(frozen=True)
class Link:
    """A symbolic link to be made."""

    path: str
    target: str


class Ext:
    """An ext4 file system in a partition of `image`."""

    def __init__(self, image: Path, partition: Partition) -> None:
        self._device = f"{image}?offset={partition.offset}"

    def repair(self) -> None:
        """Replay its journal, and mend what a kill left half written.

        Raises:
            FlashError: it is damaged beyond that.
        """
        done = _run(["e2fsck", "-f", "-y", self._device])
        if done.returncode >= _FSCK_FAILED:
            raise FlashError(f"the image's file system is damaged: {_last(done)}")

    def check(self) -> None:
        """Raises `FlashError` where its structures are not sound."""
        done = _run(["e2fsck", "-f", "-n", self._device])
        if done.returncode != 0:
            raise FlashError(f"the image's file system did not come out sound: {_last(done)}")

    def free_bytes(self) -> int:
        """What is free for root."""
        text = self._ask("stats")
        blocks = re.search(r"^Free blocks:\s+(\d+)", text, re.MULTILINE)
        size = re.search(r"^Block size:\s+(\d+)", text, re.MULTILINE)
        return int(blocks[1]) * int(size[1]) if blocks and size else 0

    def read(self, path: str) -> bytes | None:
        """A file's content, links followed; None where there is none."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "file"
            self._ask(f"dump {self._resolved(path)} {out}")
            return out.read_bytes() if out.exists() else None

    def list(self, path: str) -> list[Entry]:
        """What lies in a folder, links followed; empty where there is none."""
        found = []
        for line in self._ask(f"ls -p {self._resolved(path)}").splitlines():
            match = _LISTED.match(line)
            if match and match["name"] not in {".", ".."}:
                owner = int(match["uid"]), int(match["gid"])
                found.append(Entry(match["name"], int(match["mode"], 8), owner, int(match["size"] or 0)))
        return found

    def entry(self, path: str) -> Entry | None:
        """One name, a link itself; None where there is none."""
        where = PurePosixPath(path)
        return next((entry for entry in self.list(str(where.parent)) if entry.name == where.name), None)

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder, links followed."""
        return self.entry(self._resolved(path)) is not None

    def write(self, wanted: Iterable[Put | Link]) -> None:
        """Write files and links, all root's; folders are made, and what is there by that name is replaced.

        Raises:
            FlashError: something is not there afterwards, or not whole.
        """
        wanted = list(wanted)
        made: set[str] = set()
        with tempfile.TemporaryDirectory() as folder:
            commands: list[str] = []
            for number, one in enumerate(wanted):
                for parent in reversed(PurePosixPath(one.path).parents[:-1]):
                    if str(parent) not in made and not self.exists(str(parent)):
                        commands += [f"mkdir {parent}", f"sif {parent} mode 040755"]
                    made.add(str(parent))
                if self.entry(one.path) is not None:
                    commands.append(f"rm {_checked(one.path)}")
                if isinstance(one, Link):
                    commands.append(f"symlink {_checked(one.path)} {_checked_target(one.target)}")
                    continue
                source = one.content
                if isinstance(source, bytes):
                    source = Path(folder) / str(number)
                    source.write_bytes(one.content if isinstance(one.content, bytes) else b"")
                if any(letter in str(source) for letter in ' "'):
                    linked = Path(folder) / f"link-{number}"
                    os.link(
                        source, linked
                    ) if source.stat().st_dev == linked.parent.stat().st_dev else shutil.copy(source, linked)
                    source = linked
                commands += [
                    f"write {source.absolute()} {_checked(one.path)}",
                    f"sif {one.path} mode 0{0o100000 | one.mode:o}",
                    f"sif {one.path} uid 0",
                    f"sif {one.path} gid 0",
                ]
            script = Path(folder) / "commands"
            script.write_text("\n".join(commands) + "\n")
            done = _run(["debugfs", "-w", "-f", str(script), self._device])
            self._verify(wanted, done)

    def _verify(self, wanted: Sequence[Put | Link], done: subprocess.CompletedProcess[bytes]) -> None:
        for one in wanted:
            entry = self.entry(one.path)
            if isinstance(one, Put):
                size = len(one.content) if isinstance(one.content, bytes) else one.content.stat().st_size
                sound = entry is not None and entry.size == size and entry.mode == 0o100000 | one.mode
            else:
                sound = entry is not None
            if not sound:
                raise FlashError(f"{one.path} could not be written into the image: {_last(done)}")

    def _resolved(self, path: str) -> str:
        """`path` with links in it followed, as the system in the image would."""
        done = PurePosixPath("/")
        ahead = list(PurePosixPath(_checked(path)).parts[1:])
        for _ in range(200):
            if not ahead:
                break
            name = ahead.pop(0)
            if name == "..":
                done = done.parent
                continue
            target = self._link(str(done / name))
            if target is None:
                done /= name
            else:
                if target.startswith("/"):
                    done = PurePosixPath("/")
                ahead = [part for part in PurePosixPath(target).parts if part != "/"] + ahead
        return _checked(str(done))

    def _link(self, path: str) -> str | None:
        text = self._ask(f"stat {_checked(path)}")
        match = re.search(r'Fast link dest: "([^"]*)"', text)
        return match[1] if match else None

    def _ask(self, command: str) -> str:
        return _run(["debugfs", "-R", command, self._device]).stdout.decode("utf-8", "replace")


class Fat:
    """A FAT file system in a partition of `image`: what a Raspberry Pi boots from."""

    def __init__(self, image: Path, partition: Partition) -> None:
        self._device = f"{image}@@{partition.offset}"

    def list(self) -> list[str]:
        """The names at its top."""
        done = _run(["mdir", "-b", "-i", self._device, "::/"])
        return [
            line.removeprefix("::/").rstrip("/")
            for line in done.stdout.decode("utf-8", "replace").splitlines()
        ]

    def read(self, name: str) -> bytes | None:
        """A file at its top; None where there is none."""
        done = _run(["mtype", "-i", self._device, f"::/{name}"])
        return done.stdout if done.returncode == 0 else None

    def write(self, name: str, content: bytes) -> None:
        """Write a file at its top, over an old one.

        Raises:
            FlashError: it is not there afterwards.
        """
        done = _run(["mcopy", "-o", "-i", self._device, "-", f"::/{name}"], content)
        if done.returncode != 0 or self.read(name) != content:
            raise FlashError(f"{name} could not be written into the image's boot partition: {_last(done)}")


def require_programs(*, fat: bool) -> None:
    """Look for what this needs.

    Raises:
        FlashError: with the packages that have it.
    """
    needed = {"debugfs": "e2fsprogs", "e2fsck": "e2fsprogs"} | ({"mcopy": "mtools"} if fat else {})
    missing = sorted(
        {package for program, package in needed.items() if shutil.which(program, path=_path()) is None}
    )
    if missing:
        raise FlashError(f"this needs {' and '.join(missing)} here: apt-get install {' '.join(missing)}")


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def _run(command: list[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environ,
        "PATH": _path(),
        "LC_ALL": "C",
        "MTOOLS_SKIP_CHECK": "1",
        "DEBUGFS_PAGER": "cat",
    }
    return subprocess.run(command, input=data, capture_output=True, check=False, env=environment)  # noqa: S603 - checked words


def _checked(path: str) -> str:
    if _PATH.match(path) is None:
        raise FlashError(f"no file of that name is written into an image: {path!r}")
    return path


def _checked_target(target: str) -> str:
    return _checked(target) if target.startswith("/") else _checked(f"/{target}")[1:]


def _last(done: subprocess.CompletedProcess[bytes]) -> str:
    text = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace")
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.startswith(("debugfs", "e2fsck"))
    ]
    return lines[-1] if lines else f"ended with {done.returncode}"
