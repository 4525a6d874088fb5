"""Onto the image of an SD card with Debian or Raspberry Pi OS on it: the card's first start installs the agent.

A bundle is put into the image, and a service that runs it once. Nothing of the image runs here, so that any machine can
make a card for any board. The image is changed in place. Beside it lies a marker while that is under way: whoever finds
it was killed, and the next call repairs the image first and then does everything anew.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from fedmq_edge_agent.flashing import network
from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.filesystems import Ext, Fat, Link, Put, require_programs
from fedmq_edge_agent.flashing.network import Wifi
from fedmq_edge_agent.flashing.partitions import read_partitions
from fedmq_edge_agent.flashing.platforms import PYTHONS, Platform, of_machine

FIRST_BOOT: Final = "/opt/fedmq/firstboot.run"
_UNIT: Final = "/etc/systemd/system/fedmq-firstboot.service"
_WANTED: Final = "/etc/systemd/system/multi-user.target.wants/fedmq-firstboot.service"
_KEYFILES: Final = "/etc/NetworkManager/system-connections"
_MACHINES: Final = {0x3E: ("x86_64", 64), 0xB7: ("aarch64", 64), 0x28: ("armv7l", 32)}
"""ELF's numbers of processors."""

_SPARE_BYTES: Final = 16 << 20


@dataclass(frozen=True)
class Card:
    """What is on an image.

    Attributes:
        path: the image, or a disk.
        system: as it calls itself.
        platform: of its programs.
        python: of its system, as in "3.11".
        root: its root file system.
        boot: what a Raspberry Pi boots from, where there is one.
        free_bytes: in the root file system.
    """

    path: Path
    system: str
    platform: Platform
    python: str
    root: Ext
    boot: Fat | None
    free_bytes: int


def check_target(path: Path, *, yes: bool) -> None:
    """Refuse what must not be written to.

    Raises:
        FlashError: it is not there, or a disk that is in use, or a disk and nobody said `yes`.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FlashError(f"cannot read {path}: {error.strerror}") from None
    if stat.S_ISREG(mode):
        return
    if not stat.S_ISBLK(mode):
        raise FlashError(f"{path} is neither an image nor a disk")
    mounted = [line.split()[:2] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    for device, where in mounted:
        if device == str(path) or device.startswith(str(path.resolve())):
            raise FlashError(f"{device} is mounted at {where}: unmount it first")
    if not yes:
        raise FlashError(f"{path} is a disk, not an image: say --yes if it is really the card")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        raise FlashError(f"{path} cannot be written: {error.strerror}") from None


def open_card(path: Path) -> Card:
    """Look at an image; what somebody who was killed left half written is repaired first.

    Raises:
        FlashError: it is none that we know.
    """
    partitions = read_partitions(path)
    require_programs(fat=any(partition.kind == "fat" for partition in partitions))
    boot: Fat | None = None
    for partition in partitions:
        if partition.kind == "fat":
            fat = Fat(path, partition)
            if {"cmdline.txt", "config.txt"} & {name.lower() for name in fat.list()}:
                boot = fat
    for partition in partitions:
        if partition.kind != "ext":
            continue
        root = Ext(path, partition)
        if _marker(path).exists():
            root.repair()
        release = root.read("/etc/os-release")
        if release is not None and root.exists("/etc/systemd/system"):
            return _known(path, root, boot, release.decode("utf-8", "replace"))
    raise FlashError(
        f"{path} holds no Debian or Raspberry Pi OS: there is no ext4 partition with such a system"
    )


def _known(path: Path, root: Ext, boot: Fat | None, release: str) -> Card:
    said = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    said = {name: value.strip("\"'") for name, value in said.items()}
    system = said.get("PRETTY_NAME", "a system without a name")
    family = {said.get("ID", ""), *said.get("ID_LIKE", "").split()}
    if not family & {"debian", "raspbian"}:
        raise FlashError(f"{path} holds {system}, and cards are made with Debian or Raspberry Pi OS")
    shell = root.read("/usr/bin/sh") or root.read("/bin/sh") or b""
    number = struct.unpack_from("<H", shell, 18)[0] if shell[:4] == b"\x7fELF" else 0
    if number not in _MACHINES:
        raise FlashError(f"{path}: nothing is made for the processor of its programs")
    pythons = {entry.name for entry in root.list("/usr/bin")}
    found = [version for version in PYTHONS if f"python{version}" in pythons]
    if not found:
        raise FlashError(f"{path}: {system} has no python3 of {', '.join(PYTHONS)}: install one in it")
    return Card(path, system, of_machine(*_MACHINES[number]), found[0], root, boot, root.free_bytes())


def customise(
    card: Card, bundle: Path, *, wifi: Wifi | None = None, hostname: str | None = None
) -> list[tuple[str, str]]:
    """Put a bundle, and what its first start is to know, into an image.

    Returns:
        What went where, a line each.

    Raises:
        FlashError: there is no room, or the system is told of its network in a way that we do not know.
    """
    size = bundle.stat().st_size
    before = card.root.entry(FIRST_BOOT)
    if size + _SPARE_BYTES > card.free_bytes + (before.size if before else 0):
        raise FlashError(
            f"{card.path} has {card.free_bytes // 1_000_000} MB free in its root file system, and the bundle takes "
            f"{size // 1_000_000}: make the image larger (truncate, then growpart and resize2fs)"
        )
    told: list[tuple[str, str]] = []
    unit = resources.files(__package__).joinpath("fedmq-firstboot.service").read_bytes()
    wanted: list[Put | Link] = []
    boot_files: dict[str, bytes] = {}
    if hostname is not None:
        told.append(_name(card, network.check_hostname(hostname), wanted))
    if wifi is not None:
        told.append(_join(card, wifi, wanted, boot_files))
    # The link goes last: without it nothing of this starts.
    wanted += [Put(FIRST_BOOT, bundle, 0o600), Put(_UNIT, unit), Link(_WANTED, _UNIT)]
    with _marked(card.path):
        card.root.repair()
        for name, content in boot_files.items():
            assert card.boot is not None
            card.boot.write(name, content)
        card.root.write(wanted)
        card.root.check()
        _flush(card.path)
    return [("bundle", f"{FIRST_BOOT}, mode 0600; the first start installs it, then removes it"), *told]


def _name(card: Card, hostname: str, wanted: list[Put | Link]) -> tuple[str, str]:
    hosts = (card.root.read("/etc/hosts") or b"").decode("utf-8", "replace")
    wanted += [
        Put("/etc/hostname", f"{hostname}\n".encode()),
        Put("/etc/hosts", network.hosts(hosts, hostname).encode()),
    ]
    if card.root.exists("/etc/cloud"):
        keep = b"preserve_hostname: true\n"
        wanted.append(Put("/etc/cloud/cloud.cfg.d/99-fedmq.cfg", keep))
    return "host name", f"{hostname}, in /etc/hostname and /etc/hosts"


def _join(card: Card, wifi: Wifi, wanted: list[Put | Link], boot: dict[str, bytes]) -> tuple[str, str]:
    if card.boot is not None and wifi.country is not None:
        line = card.boot.read("cmdline.txt")
        if line is not None:
            boot["cmdline.txt"] = network.boot_line(line.decode("utf-8", "replace"), wifi.country).encode()
    if card.root.exists("/etc/NetworkManager"):
        path = f"{_KEYFILES}/fedmq-wifi.nmconnection"
        wanted.append(Put(path, network.keyfile(wifi), 0o600))
        return "Wi-Fi", f"{wifi.ssid}, in {path}, mode 0600"
    if card.boot is not None and card.root.exists("/etc/cloud"):
        boot["network-config"] = network.netplan(wifi)
        return "Wi-Fi", f"{wifi.ssid}, in network-config on the boot partition"
    if card.root.exists("/etc/netplan"):
        path = "/etc/netplan/90-fedmq-wifi.yaml"
        wanted.append(Put(path, network.netplan(wifi), 0o600))
        return "Wi-Fi", f"{wifi.ssid}, in {path}, mode 0600"
    raise FlashError(
        f"{card.path}: {card.system} has neither NetworkManager nor cloud-init nor netplan, so that nobody knows how "
        "to tell it of a Wi-Fi: leave --wifi out"
    )


def _marker(image: Path) -> Path:
    """Beside an image; for a disk, where this user's caches are not: in /var/tmp."""
    if image.is_block_device():
        return Path("/var/tmp") / f"fedmq-flashing-{image.name}"  # noqa: S108 - it says nothing secret
    return image.with_name(f"{image.name}.flashing")


@contextmanager
def _marked(image: Path) -> Iterator[None]:
    marker = _marker(image)
    marker.write_text("a flashing is under way, or was killed: flash again\n", encoding="utf-8")
    yield
    marker.unlink()


def _flush(image: Path) -> None:
    with image.open("rb") as file:
        os.fsync(file.fileno())
