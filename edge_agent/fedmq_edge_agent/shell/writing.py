"""How the supervisor writes: a file is the old one or the new one, and what the disk refuses has a name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, ParamSpec

from fedmq_edge_agent.disk_faults import DiskFault, fault_of, sentence
from fedmq_edge_agent.trainer.durable import flush_folder
from fedmq_protocol.errors import StoreError

Given = ParamSpec("Given")

_CANNOT_BE_TAKEN: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What file systems say that cannot give room to a file before it is written."""


class DiskError(StoreError):
    """The disk did not take what was to be written; what was there before still is.

    Attributes:
        fault: why.
    """

    def __init__(self, error: OSError, path: Path) -> None:
        super().__init__(sentence(error, str(path)))
        self.fault: DiskFault = fault_of(error)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let whatever goes wrong in the block be a refusal to write `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(error, path) from error


def replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a small file: old or new, and after a power cut too if it is `durable`; else it may be anything then.

    Raises:
        DiskError: the disk does not take it.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            path.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            flush_folder(path.parent)


async def to_the_end(work: Callable[Given, None], *given: Given.args, **named: Given.kwargs) -> None:
    """Write in a thread. Whoever is cancelled still waits for its end: two at once would write into the same file.

    Raises:
        DiskError: the disk does not take it.
    """
    writes = asyncio.create_task(asyncio.to_thread(work, *given, **named))
    try:
        await asyncio.shield(writes)
    except asyncio.CancelledError:
        with contextlib.suppress(DiskError):
            await writes
        raise


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, durable."""
    lacking = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in lacking:
        flush_folder(made.parent)


def take_room(descriptor: int, room_bytes: int) -> None:
    """Let a file have so many bytes, where the system and the file system can do that without writing them."""
    if room_bytes > 0 and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, room_bytes)
        except OSError as error:
            if error.errno not in _CANNOT_BE_TAKEN:
                raise
