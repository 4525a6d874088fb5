"""Systems to install into: a copy-on-write view of another one, for root on Linux, gone when the test is.

The mounts live in a namespace of a process of the test's own: when that ends, however it ends, they are gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_HOLD = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir "$2/upper" "$2/work"
[ -z "$3" ] || { mkdir -p "$3/upper" "$3/work"; }
store=${3:-$2}
mkdir "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$store/upper,workdir=$store/work" "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
mount -t tmpfs tmpfs "$2/root/run"
for bind in $4; do
    mkdir -p "$2/root${bind#*:}"
    mount --bind -o ro "${bind%%:*}" "$2/root${bind#*:}"
done
echo ready
exec sleep infinity
"""


@dataclass(frozen=True)
class Root:
    """A system of its own in a folder that only its own processes see."""

    path: Path
    holder: int

    def outside(self, *command: str) -> list[str]:
        """A command that sees the folder `path`, in this machine's own system."""
        return ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", *command]

    def inside(self, *command: str, user: str | None = None) -> list[str]:
        """A command in that system, as its root or as another of its users, `name` or `name:group`."""
        name, _, group = (user or "").partition(":")
        drop = ["setpriv", f"--reuid={name}", f"--regid={group or name}", "--clear-groups", "--no-new-privs"]
        clean = [
            "env",
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
        ]
        return self.outside("chroot", str(self.path), *clean, *(drop if user else ()), *command)

    def run(
        self, *command: str, user: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in that system to its end."""
        done = subprocess.run(
            self.inside(*command, user=user),
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Put a file there."""
        script = 'mkdir -p "$(dirname "$1")"; cat >"$1"; chmod "$2" "$1"'
        subprocess.run(
            self.outside("sh", "-c", script, "sh", f"{self.path}{path}", f"{mode:o}"),
            input=content,
            check=True,
        )

    def tree(self, *folders: str) -> str:
        """All that lies below some folders: mode, owner, size, name and, of a link, where it leads."""
        script = (
            'for f in "$@"; do [ ! -e "$f" ] || find "$f" -printf "%M %u:%g %y %p %l\\n"; done | sort -k 4'
        )
        return self.run("sh", "-c", script, "sh", *folders).stdout


@contextlib.contextmanager
def overlaid(
    lower: Path, scratch: Path, *, keep: Path | None = None, binds: Mapping[Path, str] | None = None
) -> Iterator[Root]:
    """A system that begins as `lower` is, and changes without changing it.

    Args:
        lower: the folder with the system.
        scratch: an empty folder.
        keep: where changes lie; else in memory.
        binds: folders of this machine to be seen there, read-only.
    """
    pairs = " ".join(f"{source}:{target}" for source, target in (binds or {}).items())
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _HOLD, "sh", str(lower), str(scratch), str(keep or ""), pairs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"no system can be overlaid here: {holder.stderr.read().strip()}")
        yield Root(scratch / "root", holder.pid)
    finally:
        holder.kill()
        holder.communicate()


def require_root(*programs: str) -> None:
    """Skip where the test is not root's, or a program is missing."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount and enter another root")
    missing = [
        name for name in ("unshare", "nsenter", "chroot", "setpriv", *programs) if shutil.which(name) is None
    ]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)} here")


def modes(tree: str, names: Sequence[str]) -> dict[str, str]:
    """Of some names in a `Root.tree`, mode and owner."""
    lines = [line.split(" ") for line in tree.splitlines()]
    return {line[3]: f"{line[0]} {line[1]}" for line in lines if line[3] in names}
