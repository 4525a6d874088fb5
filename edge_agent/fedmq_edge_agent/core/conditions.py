"""When a device may train: while it has power, is cool, is not on a metered link, and in stated hours.

What the board tells comes in as `Readings`, now and then; the rules say what has to hold. While something does not, the
device rests: it takes no lease, fetches no model and does not listen to rounds, and says why. What it has trained is
delivered all the same, but over a metered link.

A training that is under way when power, battery or heat forbid it is ended at once, and its lease given back: these
hurt the board. When its hours are over or the link becomes metered it is finished.

Power that comes and goes, and a temperature about its limit, do not make the device waver: what was missing has to be
there for a minute, a battery five percent above its limit, a sensor five degrees below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fedmq_edge_agent.core.words import span

SETTLE_S: Final = 60.0
"""What was missing has to be there for so long."""
MARGIN: Final = 5.0
"""Degrees, or percent of a battery, by which it has to be better than its limit."""
DAY_MIN: Final = 24 * 60

Kind = Literal["power", "battery", "heat", "hours", "link"]
_MEASURED: Final[frozenset[Kind]] = frozenset({"battery", "heat"})
"""What has a number in its words, which changes while the reason does not."""
HARMFUL: Final[frozenset[Kind]] = frozenset({"power", "battery", "heat"})
"""What ends a training that is under way."""


@dataclass(frozen=True)
class Hours:
    """A part of the day by the local clock, in minutes since midnight; `end` before `start`: over midnight."""

    start: int
    end: int

    def include(self, minute: int) -> bool:
        """Whether `minute` is in it; the end itself is not. Where both are the same, it is the whole day."""
        return (minute - self.start) % DAY_MIN < ((self.end - self.start) % DAY_MIN or DAY_MIN)

    def __str__(self) -> str:
        return f"{_clock(self.start)}-{_clock(self.end)}"


@dataclass(frozen=True)
class Rules:
    """What has to hold for a training; nothing, as it stands here.

    Attributes:
        power: train on external power alone.
        min_battery: percent below which it does not train without external power; None: whatever it is.
        max_temperature: degrees Celsius; None: however hot it is.
        hours: train in these alone; empty: at any time.
        unmetered: train where the link is not metered alone.
        rest_untold: where the board cannot tell, do as if it did not hold.
    """

    power: bool = False
    min_battery: float | None = None
    max_temperature: float | None = None
    hours: tuple[Hours, ...] = ()
    unmetered: bool = False
    rest_untold: bool = False

    @property
    def any(self) -> bool:
        """Whether there is anything to look at."""
        return self != Rules(rest_untold=self.rest_untold)


@dataclass(frozen=True)
class Readings:
    """What the board tells; None: it cannot.

    Attributes:
        power: it has external power.
        battery: percent that is left, of the emptiest.
        temperature: the hottest sensor's name, and degrees Celsius.
        minute: since the local midnight; None: the clock was never set.
        synchronised: something keeps the clock right.
        metered: the link costs by the byte.
    """

    power: bool | None = None
    battery: float | None = None
    temperature: tuple[str, float] | None = None
    minute: int | None = None
    synchronised: bool | None = None
    metered: bool | None = None


@dataclass
class _Missing:
    """Something that does not hold."""

    why: str
    since: float
    untold: bool
    well_since: float | None = None


class Conditions:
    """Judges.

    Args:
        rules: what has to hold.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.readings: Readings | None = None
        """The newest."""
        self.untold: tuple[str, ...] = ()
        """What is asked for and this board cannot tell, and what holds instead; in words."""
        self._untold: list[str] = []
        self._missing: dict[Kind, _Missing] = {}

    @property
    def resting(self) -> bool:
        """Whether the device may not train."""
        return bool(self.problem)

    @property
    def problem(self) -> str:
        """Why it may not, in words that stay the same while the reasons do; empty while it may."""
        if self.rules.any and self.readings is None:
            return "rests until its conditions have been read"
        return "; ".join(missing.why for missing in self._missing.values())

    @property
    def harmful(self) -> bool:
        """Whether a training under way is to be ended."""
        return not HARMFUL.isdisjoint(self._missing)

    @property
    def metered(self) -> bool:
        """Whether nothing is to be sent that can wait."""
        return "link" in self._missing

    def next_deadline(self) -> float | None:
        """When something that was missing has been there for long enough."""
        since = [one.well_since for one in self._missing.values() if one.well_since is not None]
        return min(since) + SETTLE_S if since else None

    def words(self, *, now: float) -> str:
        """What is waited for, and since when."""
        if not self._missing:
            return self.problem
        since = min(missing.since for missing in self._missing.values())
        return f"does not train: {self.problem} (for {span(now - since)})"

    def read(self, readings: Readings, *, now: float) -> None:
        """Take in what the board tells."""
        first, self.readings = self.readings is None, readings
        self._untold = []
        self._judge("power", self._power(readings), now=now, at_once=first)
        self._judge("battery", self._battery(readings), now=now, at_once=first)
        self._judge("heat", self._heat(readings), now=now, at_once=first)
        self._judge("hours", self._hours(readings), now=now, at_once=True)
        self._judge("link", self._link(readings), now=now, at_once=first)
        holds = "it does not train then" if self.rules.rest_untold else "it trains all the same"
        self.untold = tuple(f"{what}; {holds}" for what in self._untold)

    def pass_time(self, *, now: float) -> None:
        """Let go of what has been there again for long enough."""
        for kind, missing in list(self._missing.items()):
            if missing.well_since is not None and now >= missing.well_since + SETTLE_S:
                del self._missing[kind]

    # ------------------------------------------------------------------------------ one by one

    def _judge(self, kind: Kind, why: str, *, now: float, at_once: bool) -> None:
        missing, untold = self._missing.get(kind), why in self._untold
        if why:
            if missing is None:
                self._missing[kind] = _Missing(why, now, untold)
                return
            missing.well_since = None
            if kind not in _MEASURED or untold != missing.untold:
                missing.why, missing.untold = why, untold
        elif missing is not None and (at_once or now >= (missing.well_since or now) + SETTLE_S):
            del self._missing[kind]
        elif missing is not None and missing.well_since is None:
            missing.well_since = now

    def _tells_not(self, what: str) -> str:
        """What holds where the board cannot tell."""
        self._untold.append(what)
        return what if self.rules.rest_untold else ""

    def _power(self, readings: Readings) -> str:
        if not self.rules.power:
            return ""
        if readings.power is None:
            return self._tells_not("this board does not tell whether it has external power")
        return "" if readings.power else "it runs on its battery, and trains on external power alone"

    def _battery(self, readings: Readings) -> str:
        limit = self.rules.min_battery
        if limit is None or readings.power:
            return ""
        if readings.battery is None:
            return self._tells_not("this board does not tell how full its battery is")
        needs = min(100.0, limit + MARGIN) if "battery" in self._missing else limit
        if readings.battery >= needs:
            return ""
        return f"its battery is at {readings.battery:.0f} %, and it trains from {limit:g} % on"

    def _heat(self, readings: Readings) -> str:
        limit = self.rules.max_temperature
        if limit is None:
            return ""
        if readings.temperature is None:
            return self._tells_not("this board has no sensor that tells how hot it is")
        sensor, degrees = readings.temperature
        if degrees <= (limit - MARGIN if "heat" in self._missing else limit):
            return ""
        return f"{sensor} is at {degrees:.0f} °C, and it trains up to {limit:g} °C"

    def _hours(self, readings: Readings) -> str:
        hours = self.rules.hours
        if not hours:
            return ""
        stated = _joined(hours)
        if readings.minute is None:
            return f"its clock is not set, and it trains at {stated} alone"
        if any(part.include(readings.minute) for part in hours):
            return ""
        next_in = min((part.start - readings.minute) % DAY_MIN for part in hours)
        unsure = (
            "" if readings.synchronised is not False else "; its clock is not synchronised, and may be wrong"
        )
        start = _clock((readings.minute + next_in) % DAY_MIN)
        return f"it trains at {stated} by its own clock, next from {start} on{unsure}"

    def _link(self, readings: Readings) -> str:
        if not self.rules.unmetered:
            return ""
        if readings.metered is None:
            return self._tells_not("this board does not tell whether its link is metered")
        return "its link is metered" if readings.metered else ""


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _joined(hours: Sequence[Hours]) -> str:
    return ", ".join(map(str, hours))
