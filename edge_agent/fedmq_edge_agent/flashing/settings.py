"""A device's settings and secrets: as they lie in the operator's folder, and as they lie on the device."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_protocol.topics import check_id

IDENTITY: Final = "/etc/fedmq/identity"
STATE: Final = "/var/lib/fedmq"
_SECRETS: Final = {
    "ca_file": "ca.pem",
    "cert_file": "cert.pem",
    "key_file": "key.pem",
    "password_file": "password",
}


@dataclass(frozen=True)
class Member:
    """What one device gets.

    Attributes:
        name: the device's.
        settings: what device.toml will say there.
        task: `[device] task` as the operator's file says it; a path is absolute.
        identity: name below /etc/fedmq/identity -> content.
    """

    name: str
    settings: dict[str, Any]
    task: str | None
    identity: dict[str, bytes] = field(repr=False)

    @property
    def has_key(self) -> bool:
        """Whether its private key is known here; otherwise the device makes its own, or comes in by password."""
        return "key.pem" in self.identity

    @property
    def can_come_in(self) -> bool:
        """Whether what is known here is enough to come in."""
        return self.has_key or "password" in self.identity


def read_member(folder: Path, name: str) -> Member:
    """Read `folder`/device.toml and the files that it names.

    Raises:
        FlashError: something is missing there, or is about another device.
    """
    path = folder / "device.toml"
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlashError(f"there is no {path}: `fedmq device enroll {name}` makes it") from None
    except (OSError, ValueError) as error:
        raise FlashError(f"{path} cannot be read: {error}") from None
    member = describe(name, settings, folder)
    for setting, file in _SECRETS.items():
        if setting in member.settings["broker"] and file not in member.identity and setting != "key_file":
            raise FlashError(
                f"{path} tells of {file}, which is not there: where {name} was revoked, "
                f"`fedmq device enroll {name}` lets it in anew"
            )
    return member


def describe(name: str, settings: dict[str, Any], folder: Path) -> Member:
    """The member that `settings` tells of, with whatever of its identity is there; paths in them are as from `folder`.

    Raises:
        FlashError: they are about another device, or its name cannot be one.
    """
    check_id(name, what="device")
    device, broker = settings.setdefault("device", {}), settings.setdefault("broker", {})
    if device.get("id", name) != name:
        raise FlashError(f"{folder / 'device.toml'} is about {device['id']!r}, not about {name!r}")
    device["id"], device["state_dir"] = name, STATE
    task = device.pop("task", None)
    if task is not None and (task.partition(":")[0].endswith(".py") or "/" in task):
        task = str(folder / task)
    identity: dict[str, bytes] = {}
    for setting, file in _SECRETS.items():
        if setting in broker:
            source = folder / broker[setting]
            broker[setting] = f"{IDENTITY}/{file}"
            if source.is_file():
                identity[file] = source.read_bytes()
    return Member(name, settings, task, identity)


def to_toml(settings: Mapping[str, Any]) -> str:
    """TOML of tables of plain values, tables first to last as they stand.

    Raises:
        FlashError: a value is of a kind that no setting has.
    """
    lines: list[str] = []
    _table(lines, (), settings)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(lines: list[str], path: tuple[str, ...], table: Mapping[str, Any]) -> None:
    values = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    if path and (values or not table):
        lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
    lines += [f"{_key(name)} = {_value(value)}" for name, value in values.items()]
    for name, value in table.items():
        if isinstance(value, Mapping):
            _table(lines, (*path, name), value)


def _key(name: str) -> str:
    return name if name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name) else _text(name)


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for pairs of surrogates and DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if value == value and abs(value) != float("inf") else str(value)  # noqa: PLR0124 - NaN
        case str():
            return _text(value)
        case list():
            return f"[{', '.join(_value(one) for one in value)}]"
        case _:
            raise FlashError(f"a setting cannot be {value!r}")
