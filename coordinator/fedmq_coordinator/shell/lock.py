"""One coordinator a state folder: a lock that the kernel lets go of when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from fedmq_protocol.errors import StoreError


def holder(folder: Path) -> str | None:
    """Who holds a folder, `pid 123` or `a process`; None: nobody does. Nothing is written."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return f"pid {pid}" if pid.isdigit() else "a process"
    finally:
        os.close(descriptor)
    return None


class FolderLock:
    """An exclusive lock on a folder, held from construction to `release`.

    Raises:
        StoreError: another process holds it (the text names its pid), or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # updates are nobody else's business
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot write in the state folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            who = f"pid {holder}" if holder.isdigit() else "its pid is not known"
            raise StoreError(
                f"another coordinator ({who}) holds {folder}: stop it first, or give this one its own state_dir"
            ) from None
        with contextlib.suppress(
            OSError
        ):  # on a full disk the lock holds as well without the name of its holder
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. The file stays: deleting it would let two holders lock two files of one name."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1
