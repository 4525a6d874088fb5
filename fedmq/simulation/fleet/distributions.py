"""Distributions as a user writes them, `lognormal(30, 0.5)` or `0.9*constant(5) + 0.1*exponential(60)`, and drawn from.

    text    = part { "+" part }
    part    = [ number "*" ] ( number | family "(" number { "," number } ")" )

Weights are needed where there is more than one part, and are taken relative to their sum. Numbers may carry a unit:
`ms`, `s`, `min`, `h`; `kbit`, `Mbit`, `Gbit`. Nothing else is understood, and nothing is evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmq_protocol.errors import UsageError

_UNITS: Final = {
    "": 1.0,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3_600.0,
    "kbit": 1e3,
    "Mbit": 1e6,
    "Gbit": 1e9,
}
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]*)?(?:e-?[0-9]+)?|\.[0-9]+)(?P<unit>[A-Za-z]*)|(?P<name>[a-z]+)|(?P<sign>[-+*(),]))"
)
_MAX_PARTS: Final = 16
_MAX_CHARS: Final = 400

Draw = Callable[[np.random.Generator], float]


@dataclass(frozen=True)
class Family:
    """One kind of distribution.

    Attributes:
        parameters: their names, for messages.
        positive: which of them must be above zero; the others must not be below.
        draw: of a generator and the parameters.
        mean: of the parameters.
    """

    parameters: tuple[str, ...]
    positive: tuple[bool, ...]
    draw: Callable[..., float]
    mean: Callable[..., float]


FAMILIES: Final[dict[str, Family]] = {
    "constant": Family(("value",), (False,), lambda _, value: value, lambda value: value),
    "uniform": Family(
        ("low", "high"), (False, False), lambda rng, a, b: rng.uniform(a, b), lambda a, b: (a + b) / 2
    ),
    "exponential": Family(("mean",), (True,), lambda rng, mean: rng.exponential(mean), lambda mean: mean),
    "lognormal": Family(
        ("median", "sigma"),
        (True, False),
        lambda rng, median, sigma: median * math.exp(sigma * rng.standard_normal()),
        lambda median, sigma: median * math.exp(sigma**2 / 2),
    ),
    "gamma": Family(
        ("mean", "shape"),
        (True, True),
        lambda rng, mean, shape: rng.gamma(shape, mean / shape),
        lambda mean, _: mean,
    ),
}
"""By name. Adding one is a line here."""


@dataclass(frozen=True)
class Part:
    """A member of a mixture."""

    weight: float
    family: str
    arguments: tuple[float, ...]

    def draw(self, rng: np.random.Generator) -> float:
        return float(FAMILIES[self.family].draw(rng, *self.arguments))

    @property
    def mean(self) -> float:
        return float(FAMILIES[self.family].mean(*self.arguments))


@dataclass(frozen=True)
class Distribution:
    """A mixture of one or more parts; no draw is below zero."""

    text: str
    parts: tuple[Part, ...]

    def draw(self, rng: np.random.Generator) -> float:
        """One number."""
        if len(self.parts) == 1:
            return self.parts[0].draw(rng)
        place = rng.random() * sum(part.weight for part in self.parts)
        for part in self.parts:
            place -= part.weight
            if place < 0:
                return part.draw(rng)
        return self.parts[-1].draw(rng)

    @property
    def mean(self) -> float:
        """The expectation."""
        total = sum(part.weight for part in self.parts)
        return sum(part.weight * part.mean for part in self.parts) / total


def parse(text: str) -> Distribution:
    """Read a distribution.

    Raises:
        UsageError: it cannot be read, or a parameter is out of range.
    """
    if len(text) > _MAX_CHARS:
        raise UsageError(f"a distribution of {len(text)} characters")
    reader = _Reader(text)
    parts = [reader.part()]
    while reader.sign("+"):
        parts.append(reader.part())
    reader.end()
    if len(parts) > _MAX_PARTS:
        raise UsageError(f"{text!r} has more than {_MAX_PARTS} parts")
    if len(parts) > 1 and any(part.weight <= 0 for part in parts):
        raise UsageError(f"{text!r}: every part of a mixture has a weight above zero")
    return Distribution(text, tuple(parts))


class _Reader:
    """Reads tokens from left to right."""

    def __init__(self, text: str) -> None:
        self._text, self._tokens, place = text, [], 0
        while place < len(text.rstrip()):
            found = _TOKEN.match(text, place)
            if found is None:
                raise self._wrong(f"{text[place : place + 8].strip()!r} is not understood")
            self._tokens.append(found)
            place = found.end()
        self._next = 0

    _tokens: list[re.Match[str]]

    def _wrong(self, why: str) -> UsageError:
        families = ", ".join(f"{name}({', '.join(one.parameters)})" for name, one in FAMILIES.items())
        return UsageError(
            f"{self._text!r} is no distribution: {why}. There are {families}, and mixtures such as "
            "0.9*constant(5) + 0.1*exponential(60)"
        )

    def _token(self, kind: str) -> re.Match[str] | None:
        if self._next < len(self._tokens) and self._tokens[self._next][kind] is not None:
            self._next += 1
            return self._tokens[self._next - 1]
        return None

    def sign(self, which: str) -> bool:
        """Whether the next token is that sign; it is taken then."""
        if self._next < len(self._tokens) and self._tokens[self._next]["sign"] == which:
            self._next += 1
            return True
        return False

    def number(self) -> float | None:
        """The next token, if it is a number."""
        found = self._token("number")
        if found is None:
            return None
        if found["unit"] not in _UNITS:
            raise self._wrong(f"the unit {found['unit']!r} is none of {', '.join(filter(None, _UNITS))}")
        value = float(found["number"]) * _UNITS[found["unit"]]
        if not math.isfinite(value):
            raise self._wrong("a number is too large")
        return value

    def part(self) -> Part:
        """A member of the mixture."""
        first, weight = self.number(), 1.0
        if first is not None and not self.sign("*"):
            return Part(weight, "constant", (first,))
        if first is not None:
            weight = first
            value = self.number()
            if value is not None:
                return Part(weight, "constant", (value,))
        name = self._token("name")
        if name is None or name["name"] not in FAMILIES:
            raise self._wrong(f"{name['name']!r} is no family" if name else "a family or a number is missing")
        return Part(weight, name["name"], self._arguments(name["name"]))

    def _arguments(self, name: str) -> tuple[float, ...]:
        family, values = FAMILIES[name], list[float]()
        if not self.sign("("):
            raise self._wrong(f"{name} is followed by its parameters, {', '.join(family.parameters)}")
        while (value := self.number()) is not None:
            values.append(value)
            if not self.sign(","):
                break
        if not self.sign(")") or len(values) != len(family.parameters):
            raise self._wrong(f"{name} takes {', '.join(family.parameters)}")
        for value, positive, what in zip(values, family.positive, family.parameters, strict=True):
            if positive and value <= 0:
                raise self._wrong(f"the {what} of {name} is above zero")
        if name == "uniform" and values[0] > values[1]:
            raise self._wrong("uniform goes from low to high")
        return tuple(values)

    def end(self) -> None:
        """Nothing may follow."""
        if self._next < len(self._tokens):
            raise self._wrong(f"{self._tokens[self._next][0].strip()!r} was not expected")
