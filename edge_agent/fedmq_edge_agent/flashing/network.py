"""How a board gets into its Wi-Fi and what it is called, as the system on its card wants to be told."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import Final

from fedmq_edge_agent.flashing.errors import FlashError

_HOST: Final = re.compile(r"^(?!-)[A-Za-z0-9-]{1,63}(?<!-)$")
_COUNTRY: Final = re.compile(r"^[A-Z]{2}$")
_SSID_BYTES: Final = 32
_PASSWORD: Final = range(8, 64)
_SPACE = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


@dataclass(frozen=True)
class Wifi:
    """A network to join.

    Attributes:
        ssid: its name.
        password: 8 to 63 characters, or 64 hex digits; None for an open one.
        country: two letters; a Raspberry Pi keeps its radio off until it knows.
    """

    ssid: str
    password: str | None = field(default=None, repr=False)
    country: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.ssid.encode()) <= _SSID_BYTES or not self.ssid.isprintable():
            raise FlashError("a Wi-Fi's name has 1 to 32 bytes, all of them printable")
        if self.password is not None and not (
            (len(self.password) in _PASSWORD and self.password.isascii() and self.password.isprintable())
            or re.fullmatch(r"[0-9A-Fa-f]{64}", self.password)
        ):
            raise FlashError("a Wi-Fi's password has 8 to 63 plain characters, or is 64 hex digits")
        if self.country is not None and not _COUNTRY.match(self.country):
            raise FlashError("--wifi-country is two capital letters, such as DE")


def check_hostname(name: str) -> str:
    """`name`, if a machine can be called so.

    Raises:
        FlashError: it cannot.
    """
    if not _HOST.match(name):
        raise FlashError(f"{name!r} cannot be a host name: letters, digits and '-', at most 63")
    return name


def keyfile(wifi: Wifi) -> bytes:
    """NetworkManager's file for it, which goes into /etc/NetworkManager/system-connections, mode 0600."""
    lines = [
        "[connection]",
        "id=fedmq-wifi",
        f"uuid={uuid.uuid5(_SPACE, wifi.ssid)}",
        "type=wifi",
        "autoconnect=true",
        "",
        "[wifi]",
        "mode=infrastructure",
        f"ssid={_bytes(wifi.ssid)}",
        "",
    ]
    if wifi.password is not None:
        lines += ["[wifi-security]", "key-mgmt=wpa-psk", f"psk={_escaped(wifi.password)}", ""]
    lines += ["[ipv4]", "method=auto", "", "[ipv6]", "method=auto", ""]
    return "\n".join(lines).encode()


def netplan(wifi: Wifi) -> bytes:
    """cloud-init's `network-config`, which lies on the boot partition; JSON is YAML."""
    # Of a password as of a plain key, netplan takes 64 hex digits as they are.
    point = {} if wifi.password is None else {"password": wifi.password}
    radio: dict[str, object] = {"dhcp4": True, "optional": True, "access-points": {wifi.ssid: point}}
    if wifi.country is not None:
        radio["regulatory-domain"] = wifi.country
    wired = {"match": {"name": "e*"}, "dhcp4": True, "optional": True}
    config = {"version": 2, "ethernets": {"wired": wired}, "wifis": {"wlan0": radio}}
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def hosts(text: str, name: str) -> str:
    """/etc/hosts with the machine's own name in it, as Debian has it at 127.0.1.1."""
    lines = text.splitlines() or ["127.0.0.1\tlocalhost", "::1\t\tlocalhost ip6-localhost ip6-loopback"]
    kept = [line for line in lines if line.split()[:1] != ["127.0.1.1"]]
    return "\n".join([*kept, f"127.0.1.1\t{name}"]) + "\n"


def boot_line(text: str, country: str) -> str:
    """The kernel's command line of a Raspberry Pi, with the country whose rules its radio keeps."""
    words = [word for word in text.split() if not word.startswith("cfg80211.ieee80211_regdom=")]
    return " ".join([*words, f"cfg80211.ieee80211_regdom={country}"]) + "\n"


def _bytes(text: str) -> str:
    """An SSID as key files take it whatever is in it: its bytes as numbers where it is not plain."""
    if re.fullmatch(r"[A-Za-z0-9 _.-]*[A-Za-z0-9_.-]", text) and not text.startswith(" "):
        return text
    return "".join(f"{byte};" for byte in text.encode())


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\\\")
    return "\\s" + escaped[1:] if escaped.startswith(" ") else escaped
