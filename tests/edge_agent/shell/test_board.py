"""Reading the board: trees as Linux lays them out, and a program in NetworkManager's place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq_edge_agent.core.conditions import Hours, Readings, Rules
from fedmq_edge_agent.shell import board as board_module
from fedmq_edge_agent.shell.board import ASK_EVERY, ASK_NETWORK, Board
from fedmq_edge_agent.shell.manners import ConditionsSettings, parse_hours

NOON_UTC = 1_795_435_200.0
"""2026-11-23, 12:00 UTC."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a Python takes to begin here."""
    monkeypatch.setattr(board_module, "_ASK_S", 60.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def lay(root: Path, **files: str) -> None:
    """`power_supply__BAT0__type="Battery"` under /sys/class, as the kernel writes it."""
    for name, text in files.items():
        path = root / "sys/class" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")


def test_a_board_without_a_supply_or_a_sensor_tells_nothing(root: Path) -> None:
    board = Board(root)
    assert board.power() == (None, None)
    assert board.temperature() is None
    assert board.synchronised() is None


def test_a_folder_that_is_another_users_alone_tells_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "run/systemd/timesync").mkdir(parents=True)

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    assert Board(root).synchronised() is None


def test_a_laptop_on_its_charger_and_off_it(root: Path) -> None:
    lay(root, power_supply__AC__type="Mains", power_supply__AC__online="1")
    lay(root, power_supply__BAT0__type="Battery", power_supply__BAT0__status="Not charging")
    lay(root, power_supply__BAT0__capacity="80")
    assert Board(root).power() == (True, 80.0)
    lay(root, power_supply__AC__online="0", power_supply__BAT0__status="Discharging")
    assert Board(root).power() == (False, 80.0)


def test_a_phone_that_is_charged_over_usb(root: Path) -> None:
    lay(root, power_supply__usb__type="USB_PD", power_supply__usb__online="2")
    lay(root, power_supply__wireless__type="Wireless", power_supply__wireless__online="0")
    lay(root, power_supply__bms__type="Battery", power_supply__bms__capacity="31")
    assert Board(root).power() == (True, 31.0)


def test_a_battery_alone_tells_by_whether_it_discharges(root: Path) -> None:
    lay(root, power_supply__battery__type="Battery", power_supply__battery__status="Charging")
    assert Board(root).power() == (True, None)
    lay(root, power_supply__battery__status="Discharging", power_supply__battery__capacity="12")
    assert Board(root).power() == (False, 12.0)
    lay(root, power_supply__battery__status="Unknown")
    assert Board(root).power() == (None, 12.0)


def test_a_mouse_is_no_battery_of_the_board(root: Path) -> None:
    lay(root, power_supply__hid__type="Battery", power_supply__hid__scope="Device")
    lay(root, power_supply__hid__status="Discharging", power_supply__hid__capacity="3")
    assert Board(root).power() == (None, None)


def test_the_hottest_sensor_counts_and_one_that_is_off_does_not(root: Path) -> None:
    lay(root, thermal__thermal_zone0__type="cpu-thermal", thermal__thermal_zone0__temp="61234")
    lay(root, thermal__thermal_zone1__type="gpu-thermal", thermal__thermal_zone1__temp="58000")
    lay(root, thermal__thermal_zone2__type="iwlwifi", thermal__thermal_zone2__temp="-273000")
    lay(root, thermal__thermal_zone3__type="broken", thermal__thermal_zone3__temp="a lot")
    (root / "sys/class/thermal/thermal_zone4").mkdir()
    assert Board(root).temperature() == ("cpu-thermal", 61.234)


@pytest.mark.usefixtures("berlin")
def test_the_minute_is_one_of_the_local_clock_and_unknown_where_that_was_never_set(root: Path) -> None:
    assert Board(root, clock=lambda: NOON_UTC).minute() == 13 * 60
    assert Board(root, clock=lambda: 12.0).minute() is None


def test_timesyncd_tells_whether_the_clock_is_right(root: Path) -> None:
    folder = root / "run/systemd/timesync"
    folder.mkdir(parents=True)
    assert Board(root).synchronised() is False
    (folder / "synchronized").touch()
    assert Board(root).synchronised() is True


@pytest.mark.parametrize(
    ("says", "metered"),
    [("u 1", True), ("u 3", True), ("u 2", False), ("u 4", False), ("u 0", None), ("", None)],
)
async def test_network_manager_is_asked_by_a_program(root: Path, says: str, metered: bool | None) -> None:  # noqa: FBT001
    board = Board(root, ask_network=(sys.executable, "-c", f"print({says!r})"))
    assert (await board.read(Rules(unmetered=True))).metered is metered


async def test_where_nobody_can_be_asked_nothing_is_known(root: Path, tmp_path: Path) -> None:
    board = Board(root, ask_network=(str(tmp_path / "no-busctl"),))
    assert (await board.read(Rules(unmetered=True))).metered is None
    failing = Board(root, ask_network=(sys.executable, "-c", "import sys; sys.exit(1)"))
    assert (await failing.read(Rules(unmetered=True))).metered is None


async def test_it_is_asked_seldom_and_only_what_the_rules_want_is_looked_at(
    root: Path, tmp_path: Path
) -> None:
    log = tmp_path / "asked"
    script = f"open({str(log)!r}, 'a').write('x'); print('u 1')"
    lay(root, thermal__thermal_zone0__type="soc", thermal__thermal_zone0__temp="50000")
    board = Board(root, ask_network=(sys.executable, "-c", script), clock=lambda: 12.0)
    assert await board.read(Rules(hours=(Hours(0, 60),))) == Readings()
    for _ in range(ASK_EVERY + 1):
        assert (await board.read(Rules(unmetered=True))).metered is True
    assert log.read_text() == "xx"


@pytest.mark.skipif(shutil.which("busctl") is None, reason="busctl is a part of systemd")
async def test_the_real_program_knows_these_arguments() -> None:
    """There may be no bus and no NetworkManager; but a wrong option would be told by another line."""
    done = subprocess.run(ASK_NETWORK, capture_output=True, text=True, timeout=60, check=False)  # noqa: ASYNC221
    assert "invalid option" not in done.stderr
    assert "unrecognized" not in done.stderr
    assert "Too few" not in done.stderr
    if done.returncode:
        board = Board(clock=lambda: NOON_UTC)  # for one minute
        assert await board.read(Rules(unmetered=True)) == Readings(minute=board.minute())


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("text", "hours"),
    [("22:00-06:00", Hours(1_320, 360)), ("0:00 - 24:00", Hours(0, 0)), ("9:30-17:05", Hours(570, 1_025))],
)
def test_hours_as_people_write_them(text: str, hours: Hours) -> None:
    assert parse_hours(text) == hours


@pytest.mark.parametrize("text", ["22-6", "25:00-26:00", "10:60-11:00", "", "10:00", "24:01-1:00"])
def test_hours_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_hours(text)


def test_settings_become_rules() -> None:
    settings = ConditionsSettings.model_validate(
        {
            "power": "external",
            "max_temperature": 70,
            "hours": ["22:00-06:00"],
            "metered": "avoid",
            "untold": "rest",
        }
    )
    assert settings.rules() == Rules(
        power=True, max_temperature=70, hours=(Hours(1_320, 360),), unmetered=True, rest_untold=True
    )
    assert not ConditionsSettings().rules().any
