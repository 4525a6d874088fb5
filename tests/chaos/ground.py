"""What the machine lends to a chaos run: a network of its own for each device, and small disks.

The run goes into namespaces of its own (`enter`): its mounts and interfaces are nobody else's, and are gone with its
last process, however it ends. Where the system does not allow that, there are doors (`proxy`) and big disks only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

_INSIDE: Final = "FEDMQ_CHAOS_INSIDE"
_PROGRAMS: Final = ("unshare", "nsenter", "ip", "tc", "mount", "umount")


def enter() -> None:
    """Begin this program anew in namespaces of its own; return where that cannot be, or has been done."""
    if _INSIDE in os.environ or sys.platform != "linux" or not all(map(shutil.which, _PROGRAMS)):
        return
    flags = ["--mount", "--net", "--propagation", "private"]
    if os.geteuid() != 0:
        flags.append("--map-root-user")
    unshare = ["unshare", *flags, "--"]
    trial = "mount -t tmpfs -o size=64k tmpfs /mnt && ip link add chaosx type veth peer name chaosy"
    tried = subprocess.run([*unshare, "sh", "-c", trial], capture_output=True, check=False)
    if tried.returncode == 0:
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", [*unshare, sys.executable, "-m", "tests.chaos", *sys.argv[1:]])


def is_inside() -> bool:
    """Whether networks and disks can be made here."""
    return _INSIDE in os.environ


def begin() -> None:
    """Let loopback work in the new network."""
    if is_inside():
        _run("ip", "link", "set", "lo", "up")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@cache
def has_netem() -> bool:
    """Whether the kernel can lose, delay and repeat packets."""
    if not is_inside():
        return False
    tried = subprocess.run(
        ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms"], capture_output=True, check=False
    )
    if tried.returncode == 0:
        _run("tc", "qdisc", "del", "dev", "lo", "root")
    return tried.returncode == 0


@dataclass
class Network:
    """One device's own: a virtual cable to the others, whose device end lies in a namespace that a process holds.

    Attributes:
        number: of the device; part of its addresses.
        gateway: the address of our end.
    """

    number: int
    gateway: str = field(init=False)
    _holder: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.gateway = f"10.77.{self.number}.1"
        ours, theirs = self._cable, f"{self._cable}d"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert self._holder.stdin is not None
        mine = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{self._holder.pid}/ns/net").readlink() == mine:  # until it has entered its own
            if self._holder.poll() is not None:
                raise OSError("no namespace for a device's network")
        _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs)
        _run("ip", "link", "set", theirs, "netns", str(self._holder.pid))
        _run("ip", "addr", "add", f"{self.gateway}/24", "dev", ours)
        _run("ip", "link", "set", ours, "up")
        for command in (
            ["ip", "addr", "add", f"10.77.{self.number}.2/24", "dev", theirs],
            ["ip", "link", "set", theirs, "up"],
            ["ip", "link", "set", "lo", "up"],
        ):
            _run(*self.command(command))

    @property
    def _cable(self) -> str:
        return f"chaos{self.number}"

    def command(self, command: list[str]) -> list[str]:
        """The same command in this network."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *command]

    def impair(self, *discipline: str) -> None:
        """Mistreat both directions, as `tc qdisc` says it: `netem delay 100ms loss 10%`, `tbf rate 64kbit ...`."""
        change = ["tc", "qdisc", "replace", "dev"]
        _run(*change, self._cable, "root", *discipline)
        _run(*self.command([*change, f"{self._cable}d", "root", *discipline]))

    def unplug(self) -> None:
        """Nothing gets through, and nobody is told."""
        _run("ip", "link", "set", self._cable, "down")

    def plug_in(self) -> None:
        """Whoever sent meanwhile sends it again, in TCP's own time."""
        _run("ip", "link", "set", self._cable, "up")

    def mend(self) -> None:
        """Be a good cable again."""
        self.plug_in()
        self.impair("pfifo", "limit", "1000")

    def close(self) -> None:
        """Let go of it."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdin is not None
        self._holder.stdin.close()


@dataclass
class SmallDisk:
    """A file system of its own in memory, which can be full."""

    folder: Path
    size_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={self.size_bytes},mode=0700", "tmpfs", str(self.folder))

    def fill(self, *, room_bytes: int = 0) -> None:
        """Leave so much room and no more; what is there stays."""
        for _ in range(20):  # what is written between looking and resizing makes the new size too small
            usage = os.statvfs(self.folder)
            used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
            with contextlib.suppress(OSError):
                return self._resize(max(used + room_bytes, usage.f_frsize))
        raise OSError(f"{self.folder} does not get full")

    def empty(self) -> None:
        """Room again."""
        self._resize(self.size_bytes)

    def _resize(self, size_bytes: int) -> None:
        _run("mount", "-o", f"remount,size={size_bytes}", str(self.folder))

    def close(self) -> None:
        """Take it away, with what is on it."""
        _run("umount", "--lazy", str(self.folder))
