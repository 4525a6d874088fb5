"""What a device is told: the text of its `device.toml`, made from the operator's file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmq.tables import CoordinatorTable, DeviceTable, FederationTable, MosquittoTable, first_host
from fedmq_protocol.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from fedmq.config import Configuration


def device_toml(configuration: Configuration, name: str, *, password: bool) -> str:
    """The settings of a device, with paths relative to the folder that they lie in.

    Task and data come from the operator's [device] table, or the command line's flags for it. A task that is a file of
    the operator's stays named by its whole path: flashing takes it along.

    Raises:
        ConfigError: a value is wrong, or there is no listener for passwords.
    """
    table = configuration.table("device", DeviceTable)
    task = table.task
    if task is not None and (".py" in task or "/" in task):
        path, colon, attribute = task.partition(":")
        task = f"{Path(path).resolve()}{colon}{attribute}"
    return _toml(
        {
            "federation": {"name": configuration.table("federation", FederationTable).name},
            "broker": _door(configuration, name, password=password),
            "device": {
                "id": name,
                "task": task,
                "coordinator_key": coordinator_key(configuration),
                "data": table.data,
            },
        }
    )


def renamed(text: str, name: str) -> str:
    """The text of a `device.toml` for the same device under another name; comments are lost.

    Raises:
        ConfigError: it is no TOML.
    """
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the device's settings are not TOML: {error}") from None
    settings.setdefault("device", {})["id"] = name
    if "username" in settings.get("broker", {}):
        settings["broker"]["username"] = name
    return _toml(settings)


def coordinator_key(configuration: Configuration) -> str | None:
    """The public key of the coordinator whose state is on this machine, 64 hex digits; None where it has none yet.

    Raises:
        StoreError: there is a key file, and it cannot be read.
    """
    from fedmq_protocol.signing import load_or_create_key

    table = configuration.table("coordinator", CoordinatorTable)
    path = table.key_file or table.state_dir / "key"
    try:
        return load_or_create_key(path).public_key.hex() if path.exists() else None
    except PermissionError as error:
        raise StoreError(f"the coordinator's key {path} cannot be read: {error}") from None


def _door(configuration: Configuration, name: str, *, password: bool) -> dict[str, Any]:
    table = configuration.table("mosquitto", MosquittoTable)
    host = first_host(configuration)
    shown = f"[{host}]" if ":" in host else host
    if password:
        if not table.password_port:
            raise ConfigError(
                f"{name} cannot come in by password: [mosquitto] password_port is 0, name a port for it"
            )
        return {
            "url": f"mqtts://{shown}:{table.password_port}",
            "ca_file": "ca.pem",
            "username": name,
            "password_file": "password",
        }
    return {
        "url": f"mqtts://{shown}:{table.port}",
        "ca_file": "ca.pem",
        "cert_file": "cert.pem",
        "key_file": "key.pem",
    }


def _toml(tables: Mapping[str, Any]) -> str:
    return "\n\n".join(_blocks(tables, "")) + "\n"


def _blocks(table: Mapping[str, Any], heading: str) -> Iterator[str]:
    values = {key: value for key, value in table.items() if value is not None and not isinstance(value, dict)}
    if values:
        lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
        yield "\n".join([f"[{heading}]", *lines] if heading else lines)
    for key, inner in table.items():
        if isinstance(inner, dict):
            yield from _blocks(inner, f"{heading}.{_key(key)}" if heading else _key(key))


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if plain else _value(name)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case _:
            # JSON's escapes are TOML's, but for DEL.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
