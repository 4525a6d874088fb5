"""Over ssh, with the system's own client, onto a real sshd on loopback that lives in a system of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_edge_agent.flashing import bundle, own
from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.remote import Remote, Target
from tests.edge_agent.flashing.roots import overlaid, require_root
from tests.edge_agent.flashing.sshd import Sshd, free_port, sshd_into
from tests.edge_agent.flashing.test_install import INSTALLED, make_bundle, system_python


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    require_root()
    for name in ("ssh", "overlay"):
        (tmp_path / name).mkdir()
    with overlaid(Path("/"), tmp_path / "overlay") as root:
        root.run("sh", "-c", "rm -rf /var/tmp; mkdir -m 1777 /var/tmp")
        with sshd_into(root, tmp_path / "ssh") as board:
            yield board


def test_a_board_says_what_it_is(sshd: Sshd) -> None:
    board = sshd.remote().probe()
    assert board.platform.machine == os.uname().machine
    assert system_python() in board.pythons
    assert board.is_root
    assert not board.device
    assert board.installed_bytes > 1_000_000


def test_copied_installed_and_nothing_left_behind(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "PACKAGES", ("fedmq_protocol",))
    made = make_bundle(tmp_path)
    remote = sshd.remote()
    board = remote.probe()
    remote.check_room(board, bundle_bytes=made.size, installed_bytes=made.installed_bytes)
    steps: list[tuple[str, int, int]] = []
    path = remote.send(made.path, lambda *step: steps.append(step))
    assert steps[-1] == ("copying", made.size, made.size)
    assert sshd.root.run("stat", "-c", "%a %s", path).stdout == f"600 {made.size}\n"
    told = remote.install(path, start=False)
    assert "installing dev-1" in told
    tree = sshd.root.tree(*INSTALLED)
    assert f"/opt/fedmq/current releases/{made.release}" in tree
    assert "/var/tmp/" not in tree
    assert remote.probe().device
    remote.put_identity([("cert.pem", b"newer"), ("key.pem", b"k" * 5000)])
    assert (
        sshd.root.run("stat", "-c", "%a %U:%G %s", "/etc/fedmq/identity/key.pem").stdout
        == "640 root:fedmq 5000\n"
    )
    assert sshd.root.run("cat", "/etc/fedmq/identity/cert.pem").stdout == "newer"


def test_a_shell_that_talks_before_it_does_what_it_is_told(sshd: Sshd, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.run"
    bundle.write_bytes(b"echo installed")
    sshd.root.write("/root/.bashrc", b"echo welcome to /srv\n")
    remote = sshd.remote()
    remote.probe()
    path = remote.send(bundle)
    assert sshd.root.run("stat", "-c", "%a %s", path).stdout == "600 14\n"
    assert "installed" in remote.install(path)
    sshd.root.write("/root/.bashrc", b"echo 'no more room for you'; exit 0\n")
    with pytest.raises(FlashError, match="does not say where"):
        remote.send(bundle)


def test_what_the_installer_refuses_is_said_in_its_words(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "PACKAGES", ("fedmq_protocol",))
    made: bundle.Bundle = make_bundle(tmp_path, python="3.13" if system_python() != "3.13" else "3.12")
    remote = sshd.remote()
    remote.probe()
    with pytest.raises(FlashError, match=r"cannot install: this bundle is for Python 3\.1\d, and here is"):
        remote.install(remote.send(made.path))
    assert "/var/tmp/" not in sshd.root.tree(*INSTALLED)


def test_a_full_disk(sshd: Sshd, tmp_path: Path) -> None:
    path = f"{sshd.root.path}/var/tmp"
    subprocess.run(sshd.root.outside("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path), check=True)
    remote = sshd.remote()
    board = remote.probe()
    with pytest.raises(FlashError, match=r"0 MB free in /var/tmp, and it takes 2 MB"):
        remote.check_room(board, bundle_bytes=2_000_000, installed_bytes=1)
    large = tmp_path / "large"
    large.write_bytes(bytes(4_000_000))
    with pytest.raises(FlashError, match="its disk is full"):
        remote.send(large)


def test_why_it_cannot_be_reached(sshd: Sshd) -> None:
    with pytest.raises(FlashError, match="nobody answers there"):
        sshd.remote(port=free_port()).probe()
    (sshd.folder / "known").write_text("")
    with pytest.raises(FlashError, match="host key is not known"):
        sshd.remote().probe()
    sshd.know((sshd.folder / "stranger.pub").read_text())
    with pytest.raises(FlashError, match="host key is not known here, or not this one"):
        sshd.remote().probe()
    sshd.know((sshd.folder / "host.pub").read_text())
    config = sshd.config.read_text().replace(str(sshd.folder / "client"), str(sshd.folder / "stranger"))
    sshd.config.write_text(config)
    with pytest.raises(FlashError, match="it does not let us in"):
        sshd.remote().probe()
    with pytest.raises(FlashError, match="no host of that name"):
        Remote(Target("board.invalid"), config=sshd.config).probe()


def test_a_user_who_may_not_install(sshd: Sshd) -> None:
    sshd.root.run("useradd", "--create-home", "--shell", "/bin/sh", "pi")
    sshd.root.run("sh", "-c", "sed -i 's/^pi:[^:]*:/pi:*:/' /etc/shadow")
    if shutil.which("sudo") is None:
        with pytest.raises(FlashError, match="sudo asks for a password"):
            sshd.remote("pi").probe()
    # A sudo that lets anybody in, as Raspberry Pi OS sets its own up for its first user.
    sshd.root.write("/usr/local/bin/sudo", b'#!/bin/sh\n[ "$1" = -n ] && shift\nexec "$@"\n', 0o755)
    assert not sshd.remote("pi").probe().is_root


names = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z")


@given(
    user=st.none() | names,
    host=st.one_of(names, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)),
    port=st.none() | st.integers(1, 65535),
)
def test_a_target_is_read_as_it_is_shown(user: str | None, host: str, port: int | None) -> None:
    target = Target(host, user, port)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "-oProxyCommand=x", "pi@", "pi@-x", "a b", "pi@host:", "pi@host:port", "@host", "x;y"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(FlashError, match="no place to reach"):
        Target.parse(text)
