"""A mosquitto.conf as Mosquitto reads it: lines, files included, listeners, bridges; what it means is for the rules.

Mosquitto's own habits are kept: a comment needs its `#` as the first character of the line, `include_dir` is followed
in the main file alone and takes what ends in `.conf`, sorted, and an option belongs to the last `listener` or
`connection` above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedmq_broker.checking.options import option_of

_MAX_FILE_BYTES: Final = 16 * 2**20
_NUMBER_DIGITS: Final = 18


@dataclass(frozen=True)
class Line:
    """One setting, and where it stands."""

    path: Path
    number: int
    name: str
    value: str

    @property
    def flag(self) -> bool | None:
        """True or false as Mosquitto reads it; None where it is neither."""
        word = self.value.split(" ")[0]
        return {"true": True, "1": True, "false": False, "0": False}.get(word)

    @property
    def integer(self) -> int:
        """The leading digits, as C's `atoi` reads them; 0 without any."""
        text = self.value.lstrip()
        sign = -1 if text.startswith("-") else 1
        text = text.removeprefix("-") if sign < 0 else text.removeprefix("+")
        digits = text[: len(text) - len(text.lstrip("0123456789"))]
        return sign * int(digits[:_NUMBER_DIGITS]) if digits else 0


@dataclass
class Section:
    """Settings that belong together: the global ones, a listener's, a bridge's."""

    head: Line | None = None
    lines: list[Line] = field(default_factory=list)

    def last(self, name: str) -> Line | None:
        """The setting that holds: the last one."""
        return next((line for line in reversed(self.lines) if line.name == name), None)

    def all(self, name: str) -> list[Line]:
        return [line for line in self.lines if line.name == name]

    def flag(self, name: str, *, default: bool) -> bool:
        line = self.last(name)
        return default if line is None or line.flag is None else line.flag

    def integer(self, name: str, default: int) -> int:
        line = self.last(name)
        return default if line is None else line.integer

    def text(self, name: str) -> str | None:
        line = self.last(name)
        return None if line is None else line.value


@dataclass
class Listener(Section):
    """A listener; `implied` ones come from options that stand before any `listener` line."""

    implied: bool = False

    @property
    def port(self) -> int | None:
        """Its TCP port; 0 is a socket in the file system."""
        if self.head is None or self.implied:
            return self.integer("port", 1883)
        return self.head.integer

    @property
    def host(self) -> str:
        """The address that it listens on; empty: all."""
        if self.head is None or self.implied:
            return self.text("bind_address") or ""
        _, _, host = self.head.value.partition(" ")
        return host.strip()

    @property
    def name(self) -> str:
        return f"the listener on {'port ' + str(self.port) if self.port else self.host or 'a socket'}"

    @property
    def has_tls(self) -> bool:
        return self.text("certfile") is not None or self.text("psk_hint") is not None


@dataclass
class Reading:
    """All of a configuration.

    Attributes:
        path: the main file.
        common: global settings, and those of security where they are global.
        listeners: in the order of the file.
        bridges: likewise.
        complaints: what could not be read at all: the line or None, and why.
    """

    path: Path
    common: Section = field(default_factory=Section)
    listeners: list[Listener] = field(default_factory=list)
    bridges: list[Section] = field(default_factory=list)
    complaints: list[tuple[Line | None, str]] = field(default_factory=list)

    @property
    def per_listener(self) -> bool:
        """Whether each listener says for itself who comes in."""
        return self.common.flag("per_listener_settings", default=False)

    @property
    def lines(self) -> Iterator[Line]:
        """Every setting, sorted as in the files."""
        for section in (self.common, *self.listeners, *self.bridges):
            if section.head is not None and section.head not in section.lines:
                yield section.head
            yield from section.lines

    def security(self, listener: Section) -> Section:
        """Where the settings are that say who comes in by this listener."""
        return listener if self.per_listener else self.common


def read_file(path: Path) -> Reading:
    """Read a configuration. Whatever cannot be read is a complaint; nothing raises."""
    reading = Reading(path)
    lines = list(_lines(reading, path, is_main=True))
    per_listener = next(
        (line.flag for line in reversed(lines) if line.name == "per_listener_settings"), False
    )
    default = Listener(implied=True)
    listener: Listener = default
    bridge: Section | None = None
    for line in lines:
        option = option_of(line.name)
        scope = option.scope if option else "global"
        if line.name == "listener":
            listener = Listener(line)
            reading.listeners.append(listener)
        elif line.name == "connection":
            bridge = Section(line)
            reading.bridges.append(bridge)
        elif scope == "bridge":
            (bridge or reading.common).lines.append(line)
        elif line.name in {"port", "bind_address"}:
            default.lines.append(line)
        elif scope == "listener" or (scope == "security" and per_listener):
            listener.lines.append(line)
        else:
            reading.common.lines.append(line)
    if default.lines:
        default.head = default.lines[0]
        reading.listeners.insert(0, default)
    return reading


def _lines(reading: Reading, path: Path, *, is_main: bool, included_by: Line | None = None) -> Iterator[Line]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        reading.complaints.append((included_by, f"{path} cannot be read: {reason}"))
        return
    if len(data) > _MAX_FILE_BYTES:
        reading.complaints.append((included_by, f"{path} is no configuration: it is larger than 16 MB"))
        return
    for number, raw in enumerate(data.decode("utf-8", errors="replace").split("\n"), 1):
        text = raw.rstrip("\r")
        if not text.strip() or text.startswith("#"):
            continue
        name, _, value = text.lstrip(" ").partition(" ")
        line = Line(path, number, name, value.strip())
        yield line
        if name == "include_dir" and is_main and line.value:
            yield from _included(reading, line)


def _included(reading: Reading, line: Line) -> Iterator[Line]:
    folder = reading.path.parent / line.value
    try:
        found = sorted(path for path in folder.iterdir() if path.name.endswith(".conf"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        reading.complaints.append((line, f"the folder {line.value!r} cannot be read: {reason}"))
        return
    for path in found:
        yield from _lines(reading, path, is_main=False, included_by=line)
