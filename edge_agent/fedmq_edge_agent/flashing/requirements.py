"""Which requirements hold on the board. pip evaluates markers on the machine that it runs on: another one.

Of PEP 508 and PEP 440 this reads what wheels' metadata contains: names, extras, specifiers, markers. Direct references
(`name @ url`) are refused, and pre-releases count as their release.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from fedmq_edge_agent.flashing.errors import FlashError

_REQUIREMENT: Final = re.compile(
    r"^\s*(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[(?P<extras>[^\]]*)\])?"
    r"\s*\(?(?P<specifier>[^;()@]*)\)?\s*(?:;(?P<marker>.*))?$"
)
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<bracket>[()])|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<operator>===|==|!=|<=|>=|~=|<|>)|(?P<word>[a-z_.]+))"
)
_CLAUSE: Final = re.compile(r"^\s*(===|==|!=|<=|>=|~=|<|>)\s*([^\s,]+)\s*$")
_RELEASE: Final = re.compile(r"^v?(?:\d+!)?(\d+(?:\.\d+)*)")
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_VERSIONS: Final = frozenset({"python_version", "python_full_version", "implementation_version"})


@dataclass(frozen=True)
class Requirement:
    """One line of `Requires-Dist`.

    Attributes:
        name: as `normal` writes it.
        extras: of that distribution.
        specifier: `>=2,<3`, or nothing.
        marker: where it holds, or nothing.
    """

    name: str
    extras: frozenset[str] = frozenset()
    specifier: str = ""
    marker: str = ""

    def __str__(self) -> str:
        extras = f"[{','.join(sorted(self.extras))}]" if self.extras else ""
        return f"{self.name}{extras}{self.specifier}"


def normal(name: str) -> str:
    """PEP 503: one way to write a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(line: str) -> Requirement:
    """Read one requirement.

    Raises:
        FlashError: it is none, or names a place in place of a version.
    """
    match = _REQUIREMENT.match(line)
    if match is None:
        raise FlashError(f"{line!r} is no requirement such as scikit-learn==1.9.1")
    specifier = ",".join(part.strip() for part in match["specifier"].split(",") if part.strip())
    for clause in filter(None, specifier.split(",")):
        if _CLAUSE.match(clause) is None:
            raise FlashError(f"{line!r} is no requirement: {clause!r} is not understood")
    extras = frozenset(normal(extra.strip()) for extra in (match["extras"] or "").split(",") if extra.strip())
    return Requirement(normal(match["name"]), extras, specifier, (match["marker"] or "").strip())


def satisfies(version: str, specifier: str) -> bool:
    """Whether `version` is one that `specifier` (`>=1.26,<3`, or nothing) allows."""
    return all(_allows(version, *_clause(part)) for part in specifier.split(",") if part)


def holds(marker: str, environment: Mapping[str, str], extras: frozenset[str] = frozenset()) -> bool:
    """Whether a marker is true where `environment` holds and `extras` were asked for; an empty one always is.

    Raises:
        FlashError: it is not understood.
    """
    if not marker:
        return True
    if extras and re.search(r"\bextra\b", marker):
        return any(_Marker(marker, {**environment, "extra": extra}).value() for extra in extras)
    return _Marker(marker, {**environment, "extra": ""}).value()


def _clause(text: str) -> tuple[str, str]:
    match = _CLAUSE.match(text)
    assert match is not None, text
    return match[1], match[2]


def _release(version: str) -> tuple[int, ...]:
    match = _RELEASE.match(version.strip())
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _padded(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[list[int], list[int]]:
    pairs = list(zip_longest(one, other, fillvalue=0))
    return [a for a, _ in pairs], [b for _, b in pairs]


def _allows(version: str, sign: str, wanted: str) -> bool:
    have, want = _release(version), _release(wanted)
    if sign == "===":
        return version == wanted
    padded = tuple(_padded(have, want)[0])
    if sign == "~=":
        return _allows(version, ">=", wanted) and padded[: len(want) - 1] == want[:-1]
    if wanted.endswith(".*"):
        return (padded[: len(want)] == want) is (sign == "==")
    if "+" in wanted and sign == "==":
        return version == wanted
    one, other = _padded(have, want)
    if sign in _COMPARE:
        return _COMPARE[sign](one, other)
    return (one == other) is (sign == "==")


class _Marker:
    """A marker, read from left to right: `or` of `and` of comparisons and brackets."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self._text = text
        self._environment = environment
        self._tokens = self._split(text)
        self._next = 0

    def value(self) -> bool:
        value = self._any()
        if self._next != len(self._tokens):
            raise self._nonsense()
        return value

    def _nonsense(self) -> FlashError:
        return FlashError(f"the marker {self._text!r} is not understood")

    def _split(self, text: str) -> list[tuple[str, str]]:
        tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise self._nonsense()
            tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        return tokens

    def _take(self) -> tuple[str, str]:
        if self._next == len(self._tokens):
            raise self._nonsense()
        self._next += 1
        return self._tokens[self._next - 1]

    def _is(self, *token: str) -> bool:
        return self._next < len(self._tokens) and self._tokens[self._next] == token

    def _any(self) -> bool:
        value = self._all()
        while self._is("word", "or"):
            self._take()
            value = self._all() or value
        return value

    def _all(self) -> bool:
        value = self._one()
        while self._is("word", "and"):
            self._take()
            value = self._one() and value
        return value

    def _one(self) -> bool:
        if self._is("bracket", "("):
            self._take()
            value = self._any()
            if self._take() != ("bracket", ")"):
                raise self._nonsense()
            return value
        left, left_is_version = self._operand()
        kind, sign = self._take()
        if (kind, sign) == ("word", "not"):
            if self._take() != ("word", "in"):
                raise self._nonsense()
            sign = "not in"
        elif kind != "operator" and sign != "in":
            raise self._nonsense()
        right, right_is_version = self._operand()
        if sign in {"in", "not in"}:
            return (left in right) is (sign == "in")
        if left_is_version:
            return _allows(left, sign, right)
        if right_is_version:
            mirrored = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(sign, sign)
            return _allows(right, mirrored, left)
        if sign in _COMPARE:
            return _COMPARE[sign](left, right)
        return (left == right) is (sign != "!=")

    def _operand(self) -> tuple[str, bool]:
        kind, token = self._take()
        if kind == "text":
            return token[1:-1], False
        if kind != "word" or token not in self._environment:
            raise self._nonsense()
        value = self._environment[token]
        return (normal(value) if token == "extra" else value), token in _VERSIONS  # noqa: S105 - PEP 508's word
