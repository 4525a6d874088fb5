"""The partitions of a disk's image, read from its first sectors: MBR (Raspberry Pi OS) and GPT (Debian)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal

from fedmq_edge_agent.flashing.errors import FlashError

SECTOR: Final = 512
_MBR_ENTRIES: Final = 446
_MBR_MARK: Final = b"\x55\xaa"
_MBR_PROTECTS_GPT: Final = 0xEE
_MBR_EXTENDED: Final = (0x05, 0x0F, 0x85)
_GPT_MARK: Final = b"EFI PART"
_EXT_MARK: Final = (1024 + 56, b"\x53\xef")
_FAT_MARKS: Final = ((54, b"FAT"), (82, b"FAT32"))

Kind = Literal["ext", "fat", "other"]


@dataclass(frozen=True)
class Partition:
    """One partition: where it lies, in bytes, and what its first blocks say that it holds."""

    number: int
    offset: int
    size: int
    kind: Kind


def read_partitions(path: Path) -> list[Partition]:
    """The partitions of an image, or of a disk, by number.

    Raises:
        FlashError: there is no such file, or it has no table of partitions.
    """
    try:
        with path.open("rb") as disk:
            found = [
                Partition(number, offset, size, _kind(disk, offset)) for number, offset, size in _table(disk)
            ]
    except OSError as error:
        raise FlashError(f"cannot read {path}: {error.strerror}") from None
    except (OverflowError, ValueError):
        raise FlashError(f"{path} is no image of a disk: its table of partitions leads nowhere") from None
    if not found:
        raise FlashError(f"{path} is no image of a disk: it has no table of partitions")
    return found


def _table(disk: BinaryIO) -> Iterator[tuple[int, int, int]]:
    first = _read(disk, 0, SECTOR)
    if first[510:512] != _MBR_MARK:
        return
    entries = [first[at : at + 16] for at in range(_MBR_ENTRIES, _MBR_ENTRIES + 64, 16)]
    if any(entry[4] == _MBR_PROTECTS_GPT for entry in entries):
        yield from _gpt(disk)
        return
    for number, entry in enumerate(entries, 1):
        start, sectors = struct.unpack_from("<II", entry, 8)
        if entry[4] and sectors and entry[4] not in _MBR_EXTENDED:
            yield number, start * SECTOR, sectors * SECTOR


def _gpt(disk: BinaryIO) -> Iterator[tuple[int, int, int]]:
    header = _read(disk, SECTOR, 92)
    if header[:8] != _GPT_MARK:
        return
    entries_at, count, size = struct.unpack_from("<QII", header, 72)
    for number in range(1, min(count, 128) + 1):
        entry = _read(disk, entries_at * SECTOR + (number - 1) * size, 48)
        if len(entry) == 48 and any(entry[:16]):  # noqa: PLR2004 - so much of an entry is read
            first, last = struct.unpack_from("<QQ", entry, 32)
            if last < first:
                raise ValueError("a partition that ends before it begins")
            yield number, first * SECTOR, (last - first + 1) * SECTOR


def _kind(disk: BinaryIO, offset: int) -> Kind:
    at, mark = _EXT_MARK
    if _read(disk, offset + at, len(mark)) == mark:
        return "ext"
    if any(_read(disk, offset + where, len(mark)) == mark for where, mark in _FAT_MARKS):
        return "fat"
    return "other"


def _read(disk: BinaryIO, offset: int, size: int) -> bytes:
    disk.seek(offset)
    return disk.read(size).ljust(size, b"\0")
