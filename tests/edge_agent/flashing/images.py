"""Images of SD cards that a test makes: a table of partitions written by hand, file systems by their own tools."""

from __future__ import annotations

import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import pytest

MB = 1 << 20
ARM64_ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 0xB7) + bytes(64)
OS_RELEASE = 'PRETTY_NAME="Raspberry Pi OS (of a test)"\nID=debian\n'


def require_tools(*names: str) -> None:
    """Skip where the programs are missing that make an image."""
    path = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin"
    missing = [name for name in names if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)} here (apt-get install e2fsprogs dosfstools mtools)")


def make_root(folder: Path, files: Mapping[str, bytes | str] | None = None) -> Path:
    """The few files by which a system is known."""
    everything: dict[str, bytes | str] = {
        "usr/lib/os-release": OS_RELEASE,
        "usr/bin/dash": ARM64_ELF,
        "usr/bin/python3.11": ARM64_ELF,
        "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\traspberrypi\n",
        "etc/hostname": "raspberrypi\n",
        "etc/systemd/system/.keep": "",
        **(files or {}),
    }
    for name, content in everything.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "etc/os-release").symlink_to("../usr/lib/os-release")
    (folder / "usr/bin/sh").symlink_to("dash")
    (folder / "bin").symlink_to("usr/bin")
    return folder


def make_image(
    path: Path, root: Path, *, root_mb: int = 24, boot: Mapping[str, str] | None = None, gpt: bool = False
) -> Path:
    """An image with a FAT partition, where `boot` has files for it, and an ext4 one with what lies in `root`."""
    require_tools("mkfs.ext4", "mkfs.vfat", "mcopy", "debugfs", "e2fsck")
    boot_mb = 8 if boot is not None else 0
    root_at = (1 + boot_mb) * MB
    with path.open("wb") as file:
        file.truncate(root_at + (root_mb + 1) * MB)
    pieces = [(root_at, root_mb * MB, 0x83)]
    if boot is not None:
        pieces.insert(0, (MB, boot_mb * MB, 0x0C))
        fat = path.with_suffix(".fat")
        with fat.open("wb") as file:
            file.truncate(boot_mb * MB)
        _tool("mkfs.vfat", "-n", "bootfs", str(fat))
        with path.open("r+b") as file:
            file.seek(MB)
            file.write(fat.read_bytes())
        fat.unlink()
        for name, text in boot.items():
            _tool("mcopy", "-i", f"{path}@@{MB}", "-", f"::/{name}", data=text.encode())
    offset = f"offset={root_at}"
    _tool(
        "mkfs.ext4",
        "-q",
        "-F",
        "-L",
        "rootfs",
        "-d",
        str(root),
        "-E",
        offset,
        str(path),
        f"{root_mb * 1024}k",
    )
    with path.open("r+b") as file:
        write = _write_gpt if gpt else _write_mbr
        write(file, pieces, path.stat().st_size)
    return path


def _write_mbr(file: BinaryIO, pieces: list[tuple[int, int, int]], _size: int) -> None:
    file.seek(446)
    entries = [
        bytes([0, 0, 0, 0, kind, 0, 0, 0]) + struct.pack("<II", start // 512, size // 512)
        for start, size, kind in pieces
    ]
    file.write(b"".join(entries))
    file.seek(510)
    file.write(b"\x55\xaa")


def _write_gpt(file: BinaryIO, pieces: list[tuple[int, int, int]], size: int) -> None:
    _write_mbr(file, [(512, size - 512, 0xEE)], size)
    linux = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    entries = b"".join(
        linux
        + uuid.uuid4().bytes_le
        + struct.pack("<QQQ", start // 512, (start + length) // 512 - 1, 0)
        + bytes(72)
        for start, length, _ in pieces
    ).ljust(128 * 128, b"\0")
    last = size // 512 - 1
    header = struct.pack("<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, 0, 0, 1, last, 34, last - 33)
    header += uuid.uuid4().bytes_le + struct.pack("<QIII", 2, 128, 128, zlib.crc32(entries))
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    file.seek(512)
    file.write(header)
    file.seek(1024)
    file.write(entries)


def _tool(*command: str, data: bytes = b"") -> None:
    path = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin"
    subprocess.run(
        command, input=data, check=True, capture_output=True, env={"PATH": path, "MTOOLS_SKIP_CHECK": "1"}
    )
