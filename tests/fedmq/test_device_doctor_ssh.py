"""A device's own doctor, run by its operator over a real sshd on the loopback interface."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.commands.device_doctor import _told, on_device
from fedmq_broker.probe import find_free_port
from tests.fedmq.test_doctor import written

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """user@host:port of a board, on which `fedmq` is this one; and an `ssh` that gets in there."""
    if not Path(SSHD).exists() or shutil.which("ssh") is None:
        pytest.skip("there is no sshd here (apt-get install openssh-server openssh-client)")
    folder = tmp_path / "ssh"
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("host", "own"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    _program(programs / "fedmq", f'exec {sys.executable} -m fedmq "$@"')
    port = find_free_port("127.0.0.1")
    paths = f"PATH={programs}:/usr/bin:/bin PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    (folder / "sshd_config").write_text(
        f"""
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/own.pub
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
SetEnv {paths}
"""
    )
    (folder / "ssh_config").write_text(
        f"Host *\nIdentityFile {folder}/own\nIdentitiesOnly yes\nStrictHostKeyChecking accept-new\n"
        f"UserKnownHostsFile {folder}/known\nLogLevel ERROR\n"
    )
    ours = tmp_path / "ours"
    ours.mkdir()
    _program(ours / "ssh", f'exec {shutil.which("ssh")} -F {folder}/ssh_config "$@"')
    monkeypatch.setenv("PATH", f"{ours}:{os.environ['PATH']}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.02)
        else:
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()}")
        yield f"{getpass.getuser()}@127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def test_what_the_device_says_of_itself(board: str, tmp_path: Path) -> None:
    if Path("/opt/fedmq/bin/fedmq").exists():
        pytest.skip("this machine is a device itself")
    home = tmp_path / "a board's home"
    home.mkdir()
    found = {one.name: one for one in on_device(board, written(home), without_torch=True)}
    assert found["device/ssh"].level == "ok"
    assert found["device/configuration"].level == "ok"
    assert found["device/route"].level == "failed"
    assert "fedmq broker status" in found["device/route"].mend
    assert "device/torch" not in found
    missing = {one.name: one for one in on_device(board, str(home / "elsewhere.toml"))}
    assert missing["device/configuration"].level == "failed"
    assert "there is no file" in missing["device/configuration"].found


def test_a_board_that_is_not_reached(board: str) -> None:
    user, _, port = board.rpartition(":")
    (found,) = on_device(f"{user}:{find_free_port('127.0.0.1')}", "/etc/fedmq/device.toml")
    assert (found.name, found.level) == ("device/ssh", "failed")
    assert "refused" in found.found.lower()
    assert f"ssh {user}" in found.mend
    assert port


def test_a_board_whose_banner_is_in_other_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "ssh", "printf 'Zutritt f\\374r niemand\\n' >&2; exit 255")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (found,) = on_device("pi@board", "/etc/fedmq/device.toml")
    assert (found.name, found.level) == ("device/ssh", "failed")
    assert "Zutritt" in found.found


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"findings": [{}]}', '{"findings": 3}'])
def test_what_is_no_finding(text: str) -> None:
    assert _told(text) is None


def test_a_level_that_nobody_knows_is_a_failure() -> None:
    told = _told('{"findings": [{"name": "x", "level": "?", "found": "a", "mend": "b", "took_s": 1}]}')
    assert told is not None
    assert told[0].level == "failed"
