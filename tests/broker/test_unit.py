"""The systemd unit: what it says, and what systemd's own tools say of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.sizing import plan
from fedmq_broker.unit import Unit, render_unit, tells_systemd
from tests.broker_fixtures import require_mosquitto

UNIT = Unit(
    federation="home",
    folder=Path("/srv/fedmq/site/mosquitto"),
    configuration="mosquitto.conf",
    program=Path("/usr/sbin/mosquitto"),
    user="daemon",
    notifies=True,
    limits=plan(200, 300_000),
    ports=(8883, 8885, 8884),
)


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_it_bounds_files_and_memory_by_the_fleet() -> None:
    said = settings(render_unit(UNIT))
    assert said["LimitNOFILE"] == str(UNIT.limits.open_files)
    assert int(said["MemoryMax"].removesuffix("M")) * 2**20 > UNIT.limits.resident_bytes
    assert said["WorkingDirectory"] == said["ReadWritePaths"] == "/srv/fedmq/site/mosquitto"
    assert said["Type"] == "notify"
    assert settings(render_unit(replace(UNIT, notifies=False)))["Type"] == "exec"


@pytest.mark.parametrize(("ports", "capability"), [((8883,), ""), ((443, 8883), "CAP_NET_BIND_SERVICE")])
def test_a_right_is_kept_only_for_a_port_that_needs_it(ports: tuple[int, ...], capability: str) -> None:
    said = settings(render_unit(replace(UNIT, ports=ports)))
    assert said["CapabilityBoundingSet"] == said["AmbientCapabilities"] == capability


def test_in_a_home_it_sees_its_own_folder_alone() -> None:
    folder = Path("/home/ada/fed/site/mosquitto")
    said = settings(render_unit(replace(UNIT, folder=folder)))
    assert said["ProtectHome"] == "tmpfs"
    assert said["BindPaths"] == str(folder)
    assert settings(render_unit(UNIT))["ProtectHome"] == "yes"


def test_blanks_and_signs_in_a_path_stay_in_it() -> None:
    said = settings(render_unit(replace(UNIT, folder=Path("/srv/my 100% site"))))
    assert said["WorkingDirectory"] == "/srv/my\\x20100%%\\x20site"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("folder", ["site", "my 100% site"])
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "fedmq-broker.service"
    site = tmp_path / folder
    site.mkdir()
    program = find_mosquitto() or Path("/bin/true")
    path.write_text(render_unit(replace(UNIT, folder=site, program=program)))
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in (run.stdout + run.stderr).splitlines() if "fedmq-broker" in line]
    assert ours == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_it_little_exposed(tmp_path: Path) -> None:
    path = tmp_path / "fedmq-broker.service"
    path.write_text(render_unit(UNIT))
    run = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", run.stdout)
    if found is None:
        pytest.skip("this systemd cannot look at a unit that is not loaded")
    assert float(found[1]) <= 2.0  # Debian's own unit of Mosquitto: 9.6


@pytest.mark.mosquitto
def test_whether_a_program_tells_systemd_is_seen_in_it(tmp_path: Path) -> None:
    program = require_mosquitto()
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    if "=>" in linked:
        assert tells_systemd(program) == ("libsystemd" in linked)
    assert not tells_systemd(tmp_path / "absent")
