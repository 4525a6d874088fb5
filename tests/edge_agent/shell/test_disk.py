"""The agent's folder: atomic, checked, locked, and tidy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedmq_edge_agent.core.state import AgentState, Link, ModelIndex
from fedmq_edge_agent.shell.disk import SPARE_BYTES, Disk
from fedmq_edge_agent.shell.writing import DiskError
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.errors import RemoteError, StoreError
from tests.edge_agent.core.test_state import STATE


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "dev-1")


def test_a_state_and_a_pinned_key_read_back(disk: Disk) -> None:
    assert disk.load_state() == AgentState()
    assert disk.pinned_key() is None
    disk.save_state(AgentState(session=5))
    disk.save_state(AgentState(session=6))
    disk.pin(b"k" * 32)
    assert disk.load_state() == AgentState(session=6)
    assert disk.pinned_key() == b"k" * 32


@pytest.mark.parametrize(
    ("number", "fault", "says"),
    [
        (errno.ENOSPC, "full", "the disk is full; make room"),
        (errno.EDQUOT, "quota", "the disk quota of this user is used up"),
        (errno.EROFS, "read-only", "mounted read-only"),
        (errno.EIO, "failing", r"look at its health .*cannot write .*/state \(Input/output error\)"),
        (errno.EACCES, "failing", r"permissions: cannot write .*/state \(Permission denied\)"),
    ],
)
def test_a_write_that_fails_leaves_the_old_state_and_says_why(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, number: int, fault: str, says: str
) -> None:
    disk.save_state(AgentState(session=5))

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskError, match=says) as caught:
        disk.save_state(AgentState(session=6))
    assert caught.value.fault == fault
    assert disk.load_state() == AgentState(session=5)
    assert not list(disk.folder.glob("*.tmp"))


def test_a_file_that_rotted_is_noticed_before_it_is_used(disk: Disk) -> None:
    disk.store_blob("r1", "delta", 4, b"delta")
    with pytest.raises(RemoteError, match="not what was stored"):
        disk.check("r1", "delta-4.bin", blob_ref(b"other"))
    with pytest.raises(RemoteError, match="not what was stored"):
        disk.check("r1", "delta-5.bin", blob_ref(b"other"))


def test_what_nothing_refers_to_is_removed_at_a_start(disk: Disk) -> None:
    ref = blob_ref(b"base")
    link = Link(blob="snapshot", version=0, ref=ref, chain_hash=bytes(32), replica_hash=bytes(32))
    disk.save_index("r1", ModelIndex(links=(link,)))
    disk.store_blob("r1", "snapshot", 0, b"base")
    disk.store_blob("r1", "delta", 9, b"left behind")
    disk.store_blob("gone", "snapshot", 0, b"of a run that is over")
    (disk.run_dir("r1") / "delta-10.bin.part").write_bytes(b"of an unknown blob")
    (disk.run_dir("r1") / "delta-11.bin.part.have").write_bytes(b"torn")
    for name in ("update-3.bin", "residual-3.bin", "update-4.bin", ".residual-4.bin.77.part"):
        (disk.run_dir("r1") / name).write_bytes(b"x")
    assert disk.load_models(STATE) == ({"r1": ModelIndex(links=(link,))}, {"r1": ()})
    assert {file.name for file in disk.run_dir("r1").iterdir()} == {
        "model.idx",
        "base-0.bin",
        "update-3.bin",
        "residual-3.bin",
    }
    assert not disk.run_dir("gone").exists()


def test_a_damaged_index_costs_a_download_and_no_more(disk: Disk) -> None:
    disk.save_index("r1", ModelIndex())
    (disk.run_dir("r1") / "model.idx").write_bytes(b"torn")
    assert disk.load_models(STATE)[0] == {"r1": ModelIndex()}


def test_one_agent_a_folder(disk: Disk) -> None:
    with pytest.raises(StoreError, match="give each device a state_dir of its own"):
        Disk(disk.folder)
    disk.close()
    Disk(disk.folder).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use the state folder"):
        Disk(tmp_path / "file" / "dev-1")


def test_keys_are_private_and_stay(disk: Disk) -> None:
    public_key = disk.key(AgentState()).public_key
    assert disk.key(AgentState(session=7)).public_key == public_key
    assert (disk.folder / "key").stat().st_mode & 0o077 == 0
    (disk.folder / "coordinator.pub").write_text("nonsense")
    with pytest.raises(StoreError, match="remove it to believe the next coordinator"):
        disk.pinned_key()


@pytest.mark.parametrize("torn", [b"", bytes(65), b"c0ffee\n", b"\xff" * 64])
def test_a_torn_key_of_which_nobody_has_heard_is_put_aside(disk: Disk, torn: bytes) -> None:
    (disk.folder / "key").write_bytes(torn)
    made = disk.key(AgentState())
    assert disk.key(AgentState(session=100, identity=made.public_key)).public_key == made.public_key
    assert (disk.folder / "key.damaged").read_bytes() == torn


@pytest.mark.parametrize("known", [True, False], ids=["of this version", "of a version before"])
def test_a_device_that_is_known_does_not_change_its_key_in_silence(disk: Disk, known: bool) -> None:  # noqa: FBT001 - pytest names it
    key = disk.key(AgentState())
    state = AgentState(session=100, identity=key.public_key if known else None)
    path = disk.folder / "key"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    with pytest.raises(
        StoreError, match="is damaged, and by its key this device is known: put the right one"
    ):
        disk.key(state)
    path.unlink()
    with pytest.raises(StoreError, match="is gone, and by its key"):
        disk.key(state)
    assert not path.exists()
    path.write_bytes(whole)
    assert disk.key(state).public_key == key.public_key
    path.write_text("ab" * 32)
    if known:
        with pytest.raises(StoreError, match="another key than the one by which this device is known"):
            disk.key(state)


def test_the_last_room_is_for_the_state(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (disk.folder / "spare").stat().st_size == SPARE_BYTES
    flush = os.fsync

    def full_but_for_the_spare(descriptor: int) -> None:
        if (disk.folder / "spare").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full_but_for_the_spare)
    disk.save_state(AgentState(session=6))
    assert disk.load_state() == AgentState(session=6)
    monkeypatch.setattr(os, "fsync", flush)
    disk.try_room(1 << 20)
    assert (disk.folder / "spare").stat().st_size == SPARE_BYTES
    assert not (disk.folder / "trial.tmp").exists()


def test_a_chain_is_taken_up_as_far_as_its_files_are_there(disk: Disk) -> None:
    links = [
        Link(blob="snapshot", version=0, ref=blob_ref(b"base"), chain_hash=bytes(32), replica_hash=bytes(32))
    ]
    links += [
        Link(blob="delta", version=version, ref=blob_ref(b"delta"), chain_hash=bytes(32))
        for version in (1, 2, 3)
    ]
    disk.save_index("r1", ModelIndex(links=tuple(links)))
    disk.store_blob("r1", "snapshot", 0, b"base")
    disk.store_blob("r1", "delta", 1, b"delta")
    disk.store_blob("r1", "delta", 2, b"short"[:3])
    disk.store_blob("r1", "delta", 3, b"delta")
    assert disk.load_models(STATE)[0] == {"r1": ModelIndex(links=tuple(links[:2]))}


def test_only_one_line_of_a_first_start_on_a_disk_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=r"cannot use the state folder .*: Read-only file system"):
        Disk(tmp_path / "dev-1")


def test_a_read_only_disk_with_a_file_that_was_never_noted_is_read_all_the_same(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was put in place, and then the disk took no index any more."""
    disk.store_blob("r1", "snapshot", 7, b"base")
    (disk.run_dir("r1") / "base-7.bin.part.have").write_bytes(b"what was there")

    def refuse(path: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", refuse)
    assert disk.load_models(STATE) == ({"r1": ModelIndex()}, {"r1": ()})


def test_a_torn_key_on_a_read_only_disk_is_said(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    (disk.folder / "key").write_bytes(b"")

    def refuse(path: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StoreError, match=r"mounted read-only.*cannot write .*/key"):
        disk.key(AgentState())


def test_a_disk_on_which_not_even_looking_works_is_refused_and_ends_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.save_state(STATE)

    def refuse(path: Path, **_: bool) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DiskError, match="look at its health"):
        disk.save_state(STATE)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_gives_no_room_beforehand_is_tried_by_writing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As flash file systems under a small C library are; otherwise nothing would ever be mended."""

    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    (disk.folder / "spare").unlink()
    disk.try_room(1 << 20)
    assert (disk.folder / "spare").stat().st_size == SPARE_BYTES
    assert not (disk.folder / "trial.tmp").exists()
