"""Onto a board that answers to ssh, by the system's own `ssh`: its configuration, keys and known hosts hold.

Nothing secret stands in a command line, here or there: scripts and files travel over the connection's standard input.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.platforms import PYTHONS, Platform, of_machine
from fedmq_edge_agent.flashing.progress import Progress, silent

_TARGET: Final = re.compile(
    r"^(?:(?P<user>[A-Za-z0-9._][A-Za-z0-9._-]*)@)?(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._][A-Za-z0-9._-]*)"
    r"(?::(?P<port>\d{1,5}))?$"
)
_SENT: Final = re.compile(r"/var/tmp/fedmq-flash\.[A-Za-z0-9]+/bundle\.run")  # noqa: S108 - of the board
_CONNECT_S: Final = 10
_FLUSH_S: Final = 300
_SSH_FAILED: Final = 255
_BLOCK: Final = 1 << 18

_REASONS: Final = (
    ("Connection refused", "nobody answers there: is sshd running, and is that its port?"),
    ("Host key verification failed", None),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", None),
    (
        "Permission denied",
        "it does not let us in: ssh-copy-id puts your key there; no password is asked for",
    ),
    ("Could not resolve", "there is no host of that name"),
    ("timed out", "it does not answer: is the board on, and in this network?"),
    ("No route to host", "there is no way to it: is the board on, and in this network?"),
    ("Network is unreachable", "there is no way to it: is the board on, and in this network?"),
    ("No space left on device", "its disk is full"),
)
_HOST_KEY: Final = "its host key is not known here, or not this one: compare it, then connect once by hand"

_PROBE: Final = r"""
echo "machine=$(uname -m)"
echo "uid=$(id -u)"
if sudo -n true 2>/dev/null; then echo sudo=yes; fi
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
for python in python3 python3.13 python3.12 python3.11; do
    $python -c 'import struct as s, sys; print("python=%d.%d %d" % (*sys.version_info[:2], 8 * s.calcsize("P")))'
done 2>/dev/null
free() { df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print $4 }'; }
echo "incoming_kb=$(free /var/tmp)"
place=/opt/fedmq; while [ ! -d $place ]; do place=$(dirname $place); done
echo "installed_kb=$(free $place)"
if [ -d /run/systemd/system ]; then echo systemd=yes; fi
if [ -f /etc/fedmq/device.toml ]; then echo device=yes; fi
exit 0
"""


@dataclass(frozen=True)
class Target:
    """Where a board answers; what is None is as ssh's configuration has it."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `user@host:port`; user and port may be left out.

        Raises:
            FlashError: it is no such thing.
        """
        match = _TARGET.match(text)
        if match is None:
            raise FlashError(
                f"{text!r} is no place to reach by ssh, such as pi@board.home.arpa or root@[fd00::7]:2222"
            )
        port = None if match["port"] is None else int(match["port"])
        return cls(match["host"].strip("[]"), match["user"], port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True)
class Board:
    """What a board says of itself.

    Attributes:
        platform: which it is.
        pythons: the Pythons of its system that a bundle can be made for, the usual one first.
        is_root: whether we come in as root; else `sudo` is used.
        incoming_bytes: free where the bundle is put.
        installed_bytes: free where it is installed.
        systemd: whether that runs.
        device: whether it is one already.
    """

    platform: Platform
    pythons: tuple[str, ...]
    is_root: bool
    incoming_bytes: int
    installed_bytes: int
    systemd: bool
    device: bool


class Remote:
    """One board, over ssh.

    Args:
        target: where it is.
        config: a configuration for ssh, in place of the user's own.
    """

    def __init__(self, target: Target, *, config: Path | None = None) -> None:
        self._target = target
        self._config = config
        self._sudo: tuple[str, ...] = ()

    def probe(self) -> Board:
        """Ask what kind of board it is.

        Raises:
            FlashError: it cannot be reached, or nothing can be installed on it.
        """
        lines = [line.partition("=") for line in self.run(_PROBE).decode("utf-8", "replace").splitlines()]
        said = {name: value for name, _, value in lines if name != "python"}
        pythons = [value.split() for name, _, value in lines if name == "python"]
        if not pythons:
            raise FlashError(f"{self._target} has no python3: install one there, {PYTHONS[0]} or newer")
        platform = of_machine(said.get("machine", "?"), int(pythons[0][1]))
        known = tuple(dict.fromkeys(version for version, _ in pythons if version in PYTHONS))
        if not known:
            raise FlashError(
                f"{self._target} has Python {pythons[0][0]}, and bundles are made for {', '.join(PYTHONS)}"
            )
        is_root = said.get("uid") == "0"
        if not is_root and "sudo" not in said:
            raise FlashError(
                f"{self._target}: to install takes root, and sudo asks for a password there: come in as root, or let "
                "this user use sudo without one (NOPASSWD)"
            )
        self._sudo = () if is_root else ("sudo", "-n")
        return Board(
            platform,
            known,
            is_root,
            _kb(said.get("incoming_kb")),
            _kb(said.get("installed_kb")),
            "systemd" in said,
            "device" in said,
        )

    def check_room(self, board: Board, *, bundle_bytes: int, installed_bytes: int) -> None:
        """Raises `FlashError` where the board has no room for a bundle; better now than when half of it is there."""
        for need, have, where in (
            (bundle_bytes, board.incoming_bytes, "/var/tmp"),  # noqa: S108 - of the board
            (installed_bytes, board.installed_bytes, "/opt"),
        ):
            if need > have:
                raise FlashError(
                    f"{self._target} has {have // 1_000_000} MB free in {where}, and it takes {need // 1_000_000} MB"
                )

    def send(self, bundle: Path, progress: Progress = silent) -> str:
        """Copy a bundle there, for its own user's eyes alone; returns its path there.

        Raises:
            FlashError: it could not be copied.
        """
        script = (
            "umask 077; rm -rf /var/tmp/fedmq-flash.* 2>/dev/null; "
            'folder=$(mktemp -d /var/tmp/fedmq-flash.XXXXXX) && cat >"$folder/bundle.run" && echo "$folder/bundle.run"'
        )
        process = subprocess.Popen(  # noqa: S603 - ssh, with checked words
            [*self._ssh(), script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        total, sent = bundle.stat().st_size, 0
        try:
            with bundle.open("rb") as source, process.stdin as there:
                while block := source.read(_BLOCK):
                    there.write(block)
                    sent += len(block)
                    progress("copying", sent, total)
        except BrokenPipeError:
            pass  # what it says tells why
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.stdin = None
        try:
            out, err = process.communicate(timeout=_FLUSH_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise FlashError(
                f"{self._target}: what was copied is not on its disk after {_FLUSH_S} s"
            ) from None
        if process.returncode != 0:
            raise self._failed("copying the bundle", process.returncode, err)
        lines = out.decode("utf-8", "replace").split()  # a shell may say more, and before it
        if not lines or _SENT.fullmatch(lines[-1]) is None:
            raise FlashError(f"{self._target}, copying the bundle: it does not say where it put it")
        return lines[-1]

    def install(self, path: str, *, start: bool = True) -> str:
        """Run a bundle that was sent, and remove it; returns what it tells.

        Raises:
            FlashError: it refuses, and why.
        """
        options = "" if start else " --no-start"
        script = f'sh "{path}"{options} </dev/null; ended=$?; rm -rf "{path.rpartition("/")[0]}"; exit $ended'
        return self.run(script, as_root=True).decode("utf-8", "replace")

    def make_request(self, name: str) -> bytes:
        """Let the device make its key, where it has none, and its request for a certificate.

        Raises:
            FlashError: it cannot.
        """
        script = (
            "library=$(readlink -f /opt/fedmq/current)/lib; program=$(sed -n 's/^exec \\([^ ]*\\) .*/\\1/p' "
            "/opt/fedmq/bin/fedmq); "
            'PYTHONPATH=$library PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 "$program" -m '
            f"fedmq_edge_agent.flashing.identity {name} /etc/fedmq/identity"
        )
        return self.run(script, as_root=True)

    def put_identity(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Put files into /etc/fedmq/identity, each as a whole, for root and the agent alone.

        Raises:
            FlashError: they could not be put there.
        """
        for name, content in files:
            assert re.fullmatch(r"[a-z.]+", name), name
            place = f"/etc/fedmq/identity/{name}"
            script = (
                f"set -e; umask 077; cat >{place}.new; chown root:fedmq {place}.new; chmod 0640 {place}.new; "
                f"mv -f {place}.new {place}; sync"
            )
            self.run(content, as_root=True, command=script)

    def start_agent(self) -> None:
        """Start the agent, or start it anew, where systemd runs.

        Raises:
            FlashError: systemd does not let us.
        """
        self.run("systemctl daemon-reload && systemctl restart --no-block fedmq-agent.service", as_root=True)

    def run(self, text: str | bytes, *, as_root: bool = False, command: str | None = None) -> bytes:
        """Run a script there, by standard input; or `command`, with `text` as its standard input.

        Raises:
            FlashError: it cannot be reached, or the script fails.
        """
        words = [
            *(self._sudo if as_root else ()),
            *(("sh", "-c", _quoted(command)) if command else ("sh", "-s")),
        ]
        data = text.encode() if isinstance(text, str) else text
        done = subprocess.run([*self._ssh(), " ".join(words)], input=data, capture_output=True, check=False)  # noqa: S603 - ssh
        if done.returncode != 0:
            raise self._failed("installing", done.returncode, done.stderr)
        return done.stdout

    def _ssh(self) -> list[str]:
        options = [
            "-o",
            "BatchMode=yes",
            "-o",
            f"ConnectTimeout={_CONNECT_S}",
            "-o",
            "ServerAliveInterval=15",
            "-T",
        ]
        config = ["-F", str(self._config)] if self._config else []
        port = ["-p", str(self._target.port)] if self._target.port else []
        user = ["-l", self._target.user] if self._target.user else []
        return ["ssh", *config, *options, *port, *user, "--", self._target.host]

    def _failed(self, doing: str, status: int, err: bytes) -> FlashError:
        said = err.decode("utf-8", "replace")
        for sign, meaning in _REASONS:
            if sign in said and (status == _SSH_FAILED or "space" in sign):
                return FlashError(f"{self._target}: {meaning or _HOST_KEY}")
        last = [line.strip() for line in said.splitlines() if line.strip()]
        if status == _SSH_FAILED:
            return FlashError(
                f"{self._target} cannot be reached: {last[-1] if last else 'ssh does not say why'}"
            )
        return FlashError(f"{self._target}, {doing}: {last[-1] if last else f'ended with {status}'}")


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"


def _kb(text: str | None) -> int:
    return int(text) * 1024 if text and text.isdigit() else 0
