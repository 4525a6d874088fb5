"""What a device is told of when it may train: the `[device.conditions]` table."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedmq_edge_agent.core.conditions import DAY_MIN, Hours, Rules

_HOURS = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


def parse_hours(text: str) -> Hours:
    """`22:00-06:00` as what it says; 24:00 is the midnight at the end.

    Raises:
        ValueError: it is no such thing.
    """
    found = _HOURS.fullmatch(text.replace(" ", ""))
    if found is None:
        msg = f"{text!r} is no part of a day such as 22:00-06:00"
        raise ValueError(msg)
    hour, minute, end_hour, end_minute = map(int, found.groups())
    start, end = 60 * hour + minute, 60 * end_hour + end_minute
    if max(start, end) > DAY_MIN or max(minute, end_minute) >= 60:  # noqa: PLR2004 - minutes of an hour
        msg = f"{text!r}: a day has 24 hours, and an hour 60 minutes"
        raise ValueError(msg)
    return Hours(start % DAY_MIN, end % DAY_MIN)


def _checked(text: str) -> str:
    parse_hours(text)
    return text


class ConditionsSettings(BaseModel):
    """When a device may train. Without any of these it always may."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    power: Literal["any", "external"] = Field(
        default="any", description='"external": train on external power alone, never on the battery.'
    )
    min_battery: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="Percent: without external power, train from there on."
    )
    max_temperature: Annotated[float, Field(gt=0, le=150)] | None = Field(
        default=None, description="Degrees Celsius: train while the hottest sensor shows no more."
    )
    hours: list[Annotated[str, AfterValidator(_checked)]] = Field(
        default=[], description='Local time: train in these hours alone, such as ["22:00-06:00"].'
    )
    metered: Literal["any", "avoid"] = Field(
        default="any", description='"avoid": train and send while NetworkManager calls no link metered.'
    )
    untold: Literal["train", "rest"] = Field(
        default="train", description="What to do where the board cannot tell one of these."
    )

    def rules(self) -> Rules:
        """The same for the core."""
        return Rules(
            power=self.power == "external",
            min_battery=self.min_battery,
            max_temperature=self.max_temperature,
            hours=tuple(map(parse_hours, self.hours)),
            unmetered=self.metered == "avoid",
            rest_untold=self.untold == "rest",
        )
