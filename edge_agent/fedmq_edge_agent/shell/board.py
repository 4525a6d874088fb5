"""Looking at the board: power, battery, heat, clock and link, as the kernel and NetworkManager tell of them.

What cannot be read is None: the core has a rule for that. Files alone are read, but for the link, for which
NetworkManager is asked over D-Bus by `busctl`, a part of systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fedmq_edge_agent.core.budget import SANE_CLOCK_S
from fedmq_edge_agent.core.conditions import Readings, Rules

ASK_NETWORK: Final = (
    "busctl",
    "--system",
    "--timeout=2",
    "get-property",
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
    "Metered",
)
"""Prints `u N`, N being one of NMMetered: 0 unknown, 1 yes, 2 no, 3 presumably, 4 presumably not."""
_METERED: Final = {b"u 1": True, b"u 2": False, b"u 3": True, b"u 4": False}
_ASK_S: Final = 3.0
LOOK_S: Final = 15.0
"""The board is looked at so often."""
ASK_EVERY: Final = 4
"""NetworkManager is asked every so many looks: it takes a process."""
_PLAUSIBLE: Final = range(-40, 151)
"""Degrees Celsius; a sensor that is switched off shows others."""


class Board:
    """What tells of the board.

    Args:
        root: where `sys` and `run` are.
        ask_network: the command that tells whether the link is metered.
        clock: seconds since 1970, perhaps wrong.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        ask_network: Sequence[str] = ASK_NETWORK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._ask = tuple(ask_network)
        self._clock = clock
        self._looks = 0
        self._metered: bool | None = None

    async def read(self, rules: Rules) -> Readings:
        """Look at what the rules ask for."""
        if rules.unmetered:
            if self._looks % ASK_EVERY == 0:
                self._metered = await self._ask_network()
            self._looks += 1
        power, battery = self.power() if rules.power or rules.min_battery is not None else (None, None)
        return Readings(
            power=power,
            battery=battery,
            temperature=None if rules.max_temperature is None else self.temperature(),
            minute=self.minute(),
            synchronised=self.synchronised() if rules.hours else None,
            metered=self._metered,
        )

    def power(self) -> tuple[bool | None, float | None]:
        """Whether there is external power, and how full the emptiest battery is, in percent.

        As Linux' class `power_supply` tells: anything but a battery is a way for power to come in. A board whose only
        supply is a battery has external power where that does not discharge. Batteries of a mouse have no part in it.
        """
        inlets, charging, levels = list[bool](), list[bool](), list[float]()
        for supply in sorted(self._root.glob("sys/class/power_supply/*")):
            kind = _text(supply / "type")
            if kind == "Battery" and _text(supply / "scope") != "Device":
                status, level = _text(supply / "status"), _number(supply / "capacity")
                charging += [status != "Discharging"] if status not in {"", "Unknown"} else []
                levels += [] if level is None else [level]
            elif kind not in {"", "Battery"} and (online := _number(supply / "online")) is not None:
                inlets.append(online > 0)
        known = inlets or charging
        return (any(known) if known else None), min(levels, default=None)

    def temperature(self) -> tuple[str, float] | None:
        """The hottest sensor of Linux' class `thermal`, and its degrees Celsius."""
        zones = list[tuple[float, str]]()
        for zone in self._root.glob("sys/class/thermal/thermal_zone*"):
            thousandths = _number(zone / "temp")
            if thousandths is not None and round(thousandths / 1_000) in _PLAUSIBLE:
                zones.append((thousandths / 1_000, _text(zone / "type") or zone.name))
        if not zones:
            return None
        degrees, name = max(zones)
        return name, degrees

    def minute(self) -> int | None:
        """Minutes since the local midnight; None: the clock was never set."""
        now = self._clock()
        if now < SANE_CLOCK_S:
            return None
        local = time.localtime(now)
        return 60 * local.tm_hour + local.tm_min

    def synchronised(self) -> bool | None:
        """Whether systemd-timesyncd has set the clock since the start; None: something else may look after it."""
        folder = self._root / "run/systemd/timesync"
        try:
            return (folder / "synchronized").exists() if folder.is_dir() else None
        except OSError:  # a folder that is timesyncd's alone
            return None

    async def _ask_network(self) -> bool | None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._ask,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return None
        try:
            async with asyncio.timeout(_ASK_S):
                said, _ = await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return None
        return _METERED.get(said.strip())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # drivers answer with errors where a sensor sleeps
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
