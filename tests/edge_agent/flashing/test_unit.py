"""The unit: what it promises, and what systemd's own tools say of it, without a systemd that runs."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fedmq_edge_agent
from fedmq_edge_agent.shell.notify import Notifier

UNIT = Path(fedmq_edge_agent.__file__).parent / "flashing" / "fedmq-agent.service"
MAX_EXPOSURE = 2.0
"""`systemd-analyze security`, of 10; below 2 is what it calls OK with a smile."""

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here"
)


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def test_what_the_others_rely_on() -> None:
    service = unit()["Service"]
    assert service["ExecStart"] == "/opt/fedmq/bin/fedmq agent start --config /etc/fedmq/device.toml"
    assert (service["User"], service["Group"], service["StateDirectory"]) == ("fedmq", "fedmq", "fedmq")


def test_a_trainer_that_is_killed_for_memory_does_not_take_the_agent_along() -> None:
    """systemd.service(5): the default policy `stop` ends the whole unit when one of its processes is killed so."""
    service = unit()["Service"]
    assert service["OOMPolicy"] == "continue"
    assert service["MemoryMax"]


def test_it_comes_back_however_often_it_fails_and_waits_for_no_network_and_no_clock() -> None:
    parser = unit()
    assert parser["Service"]["Restart"] == "always"
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    wanted = " ".join(parser["Unit"].get(name, "") for name in ("After", "Wants", "Requires"))
    assert "online" not in wanted
    assert "time-sync" not in wanted


def test_the_watchdog_gives_a_slow_disk_more_time_than_the_agent_asks_pings_for() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": str(int(service["WatchdogSec"]) * 1_000_000)}
    watchdog_s = Notifier(environ).watchdog_s
    assert watchdog_s is not None
    assert watchdog_s / 3 >= 60


def test_nothing_keeps_pytorch_from_writing_code() -> None:
    assert "MemoryDenyWriteExecute" not in unit()["Service"]


@needs_analyze
def test_systemd_finds_no_mistake_in_it(tmp_path: Path) -> None:
    """With a program in place of ours and a user that exists; versions differ in what else they warn of."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/fedmq/bin/fedmq", "/bin/true")
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^(User|Group)=fedmq$", r"\1=daemon", text, flags=re.MULTILINE), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not complaints


@needs_analyze
def test_how_exposed_it_is(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze judges no files: {done.stderr[:80]}")
    assert float(found[1]) < MAX_EXPOSURE
