"""A real sshd on loopback, on a port and with keys of its own, that leads into a system of a test's."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmq_edge_agent.flashing.remote import Remote, Target
from tests.edge_agent.flashing.roots import Root, require_root

SSHD = "/usr/sbin/sshd"
SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {keys}/host
AuthorizedKeysFile {keys}/keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile none
{more}
"""
CLIENT_CONFIG = """
Host *
    IdentityFile {key}
    IdentitiesOnly yes
    UserKnownHostsFile {known}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


@dataclass(frozen=True)
class Sshd:
    """A board on loopback, and what the client needs to know."""

    root: Root
    port: int
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config"

    def remote(self, user: str = "root", *, port: int | None = None) -> Remote:
        return Remote(Target("127.0.0.1", user, port or self.port), config=self.config)

    def know(self, line: str) -> None:
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {line}\n")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextlib.contextmanager
def sshd_into(root: Root, folder: Path, *, chroot: bool = False) -> Iterator[Sshd]:
    """Run an sshd whose users come into `root`.

    Args:
        root: where they come in.
        folder: an empty one, for keys and configurations.
        chroot: sshd is this machine's, and locks its users in; else it is the one in `root`.
    """
    require_root("ssh", "ssh-keygen")
    if not Path(SSHD).exists():
        pytest.skip("there is no sshd here (apt-get install openssh-server)")
    port = free_port()
    for name in ("client", "host", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "config").write_text(CLIENT_CONFIG.format(key=folder / "client", known=folder / "known"))
    more = f"ChrootDirectory {root.path}" if chroot else ""
    keys = folder if chroot else Path("/srv")
    config = SSHD_CONFIG.format(port=port, keys=keys, more=more)
    if chroot:
        (folder / "keys").write_bytes((folder / "client.pub").read_bytes())
        (folder / "sshd_config").write_text(config)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command = root.outside(SSHD, "-D", "-e", "-f", str(folder / "sshd_config"))
    else:
        root.run("mkdir", "-m", "755", "/run/sshd")
        root.write("/srv/host", (folder / "host").read_bytes(), 0o600)
        root.write("/srv/keys", (folder / "client.pub").read_bytes())
        root.write("/srv/config", config.encode())
        command = root.inside(SSHD, "-D", "-e", "-f", "/srv/config")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None, (folder / "sshd.log").read_text(errors="replace")
            assert time.monotonic() < deadline
            time.sleep(0.02)
        board = Sshd(root, port, folder)
        board.know((folder / "host.pub").read_text())
        yield board
    finally:
        process.terminate()
        process.wait(60)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10):
        return True
    return False
