"""The folder's lock, and who is said to hold it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedmq_coordinator.shell.lock import FolderLock, holder
from fedmq_protocol.errors import StoreError


def test_the_holder_is_named_as_long_as_it_holds(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert not (tmp_path / "lock").exists()
    lock = FolderLock(tmp_path)
    assert holder(tmp_path) == f"pid {os.getpid()}"
    with pytest.raises(StoreError, match=f"pid {os.getpid()}"):
        FolderLock(tmp_path)
    lock.release()
    assert holder(tmp_path) is None


def test_on_a_full_disk_it_holds_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = FolderLock(tmp_path)
    assert holder(tmp_path) == "a process"
    lock.release()
    assert holder(tmp_path) is None
