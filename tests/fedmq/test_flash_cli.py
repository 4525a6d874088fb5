"""`fedmq device flash`, as its users type it; wheels are stand-ins that lie in the cache already."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fedmq_edge_agent.flashing import own, requirements
from fedmq_edge_agent.flashing.platforms import PLATFORMS
from fedmq_edge_agent.flashing.requirements import Requirement
from fedmq_edge_agent.flashing.wheels import pins
from tests.edge_agent.flashing.boards import fetch_stand_ins
from tests.edge_agent.flashing.images import make_image, make_root
from tests.edge_agent.flashing.test_settings import write_member
from tests.fedmq.command_line import CommandLine


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    """A folder with an enrolled device, and a cache with wheels."""
    line = CommandLine(tmp_path)
    (tmp_path / "sums.py").write_text("task = 1\n")
    write_member(tmp_path, task="../../../sums.py")
    (tmp_path / "fed.toml").write_text(
        '[federation]\nname = "home"\n[mosquitto]\nhosts = ["broker.home.arpa"]\n'
    )
    cache = tmp_path / "caches" / "fedmq" / "wheels" / "arm64-3.11"
    cache.mkdir(parents=True)
    pinned = pins(PLATFORMS["arm64"], "3.11")
    names = [requirements.parse(text).name for text in own.requirements() if "dev" not in text]
    wanted = [Requirement(name, specifier=pinned[name]) for name in names if name in pinned]
    fetch_stand_ins(PLATFORMS["arm64"], "3.11", wanted, cache)
    line.environment["XDG_CACHE_HOME"] = str(tmp_path / "caches")
    return line


def flash(command: CommandLine, *options: str) -> subprocess.CompletedProcess[str]:
    return command.run("device", "flash", "dev-1", "--config", "fed.toml", *options)


def test_a_bundle_and_what_is_told_of_it(command: CommandLine, tmp_path: Path) -> None:
    done = flash(command, "--target", "bundle", "--out", "made")
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "made" / "fedmq-dev-1-arm64-python3.11.run"
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    for word in ("software", "installed", "bundle", "secret", "delete it", "next", f"sudo sh {bundle.name}"):
        assert word in done.stdout
    content = bundle.read_bytes()
    assert b'task = "/opt/fedmq/current/task/sums.py"' in content
    assert "the key" not in done.stdout + done.stderr


def test_a_card(command: CommandLine, tmp_path: Path) -> None:
    root = make_root(tmp_path / "tree", {"etc/NetworkManager/NetworkManager.conf": ""})
    make_image(tmp_path / "card.img", root, root_mb=48)
    (tmp_path / "password").write_text("a secret word\n")
    done = flash(
        command,
        *(
            "--target",
            "sdcard:card.img",
            "--wifi",
            "net",
            "--wifi-password-file",
            "password",
            "--hostname",
            "dev-1",
        ),
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "Raspberry Pi OS (of a test), arm64, Python 3.11",
        "host name",
        "Wi-Fi",
        "firstboot",
        "secret",
    ):
        assert word in done.stdout
    assert "a secret word" not in done.stdout + done.stderr
    assert not list(command.temporary.iterdir())


def test_a_device_that_keeps_its_key_to_itself(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "site" / "members" / "dev-1" / "key.pem").unlink()
    make_image(tmp_path / "card.img", make_root(tmp_path / "tree"))
    assert (
        "the key of dev-1 is on the board that made it"
        in flash(command, "--target", "sdcard:card.img").stderr
    )
    assert "for that board alone" in flash(command, "--target", "bundle").stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "usb"], "'usb' is none of bundle, ssh:user@host, sdcard:IMAGE"),
        (["--target", "bundle:x"], "is none of bundle"),
        (["--target", "ssh:"], "is none of bundle"),
        (["--target", "bundle", "--arch", "riscv"], "there is no architecture 'riscv'; there are arm64"),
        (["--target", "bundle", "--python", "3.9"], "bundles are made for Python 3.11"),
        (["--target", "bundle", "--task", "nowhere.py"], "there is no task file nowhere.py"),
        (["--target", "bundle", "--with", "a b"], "'a b' is no requirement"),
        (["--target", "ssh:pi@-x"], "is no place to reach by ssh"),
        (["--target", "sdcard:nothing.img"], "cannot read nothing.img"),
        (["--target", "sdcard:sums.py", "--wifi-country", "DE"], "need --wifi beside them"),
        (["--target", "sdcard:sums.py"], "sums.py is no image of a disk"),
    ],
)
def test_mistakes_are_answered_in_a_line(command: CommandLine, options: list[str], said: str) -> None:
    done = flash(command, *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_device_that_was_never_enrolled(command: CommandLine) -> None:
    done = command.run("device", "flash", "dev-9", "--config", "fed.toml", "--target", "bundle")
    assert "fedmq device enroll dev-9" in done.stderr
    assert os.listdir(command.folder / "site" / "members") == ["dev-1"]  # noqa: PTH208 - names alone
