"""Files that are either there whole or not at all, after a power cut too."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write and read beside `path`; in the end it is flushed to the disk and becomes `path`.

    After an exception it is gone, and `path` as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def require_room(folder: Path, room_bytes: int) -> None:
    """Look whether so much could be written into `folder`, before work is done that would be for nothing.

    Raises:
        OSError: there is less room, or it is on a disk that is mounted read-only. Quotas show at the writing only.
    """
    disk = os.statvfs(folder)
    fault = errno.EROFS if disk.f_flag & os.ST_RDONLY else errno.ENOSPC
    tells = disk.f_blocks > 0  # in memory, or far away, they may have no size
    if fault == errno.EROFS or (tells and disk.f_bavail * disk.f_frsize < room_bytes):
        raise OSError(fault, os.strerror(fault))


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left of the files that they wrote into `folder`; none writes there now."""
    for beside in folder.glob(".*.part"):
        beside.unlink(missing_ok=True)


def write_file(path: Path, parts: Iterable[Any]) -> None:
    """Write buffers of bytes to a file beside `path`, flush it to the disk and rename it."""
    with replacing(path) as file:
        for part in parts:
            file.write(part)


def flush_folder(folder: Path) -> None:
    """Flush the renames in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
