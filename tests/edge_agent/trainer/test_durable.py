"""A disk that refuses a trainer: what was there stays, whole; the refusal says why, and how much room it takes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedmq_edge_agent.trainer.durable import replacing, require_room
from fedmq_protocol.codecs import CodecSpec
from fedmq_protocol.codecs.model import (
    apply_delta,
    decode_snapshot,
    encode_delta,
    replica_sha256,
    requantise,
)
from tests.edge_agent.trainer.asking import Ask, WriteTask, begin, task_text, train_arguments


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("changed", "code", "says"),
    [
        ({"f_bavail": 3}, "disk-full", "the disk is full; make room on it: cannot write the update"),
        ({"f_flag": os.ST_RDONLY}, "disk-read-only", "mounted read-only"),
    ],
)
def test_a_training_whose_update_could_not_be_written_is_refused_before_it_begins(
    ask: Ask,
    write_task: WriteTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, int],
    code: str,
    says: str,
) -> None:
    never = "def train(*_):\n    raise AssertionError('nobody should have trained')"
    begin(ask, write_task(task_text(extra=never, train="train")), tmp_path)
    usual = {"f_blocks": 1 << 20, "f_bavail": 1 << 20, "f_frsize": 4_096, "f_flag": 0}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**usual | changed))
    refused, detail = ask.fails("train", **train_arguments(tmp_path / "run"))
    assert refused == code
    assert says in detail


def test_the_room_that_is_looked_for_is_enough_for_the_codec_of_the_run(
    ask: Ask, plain_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would train in vain each time that the disk seems to be mended."""
    begun = begin(ask, plain_task, tmp_path)
    room = 4 * begun.schema.size + (1 << 16)  # enough for a residual, and for a sparse update
    usual = SimpleNamespace(f_blocks=1 << 20, f_bavail=2 * room, f_frsize=1, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _: usual)
    arguments = train_arguments(tmp_path / "run", codec="float32")
    ask("train", **arguments)
    usual.f_bavail = room + 3 * begun.schema.num_parameters
    reply = ask.host.handle({"id": 7, "op": "train", **arguments})
    assert reply["code"] == "disk-full"
    assert reply["room_bytes"] >= room + 4 * begun.schema.num_parameters
    usual.f_bavail = reply["room_bytes"]
    ask("train", **arguments)


def test_a_file_system_that_tells_no_size_is_not_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a tmpfs without a limit, and the root of a system that lives in memory."""
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4_096, f_flag=0)
    )
    require_room(Path(), 1 << 30)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-quota"),
        (errno.EROFS, "disk-read-only"),
        (errno.EIO, "disk-failing"),
    ],
)
def test_what_the_disk_does_not_take_has_not_happened(
    ask: Ask, plain_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    begun, run_dir = begin(ask, plain_task, tmp_path), tmp_path / "run"
    first = ask("train", **train_arguments(run_dir, 1))
    before = {file.name: file.read_bytes() for file in run_dir.iterdir()}
    again = train_arguments(run_dir, 2, residual_file=first["residual_file"])
    restore = {
        "payload_file": first["payload_file"],
        "residual_file": first["residual_file"],
        "out_file": str(run_dir / "restored-1.bin"),
        "run": "r1",
        "device": "dev-1",
    }

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        for op, arguments in (("train", again), ("restore", restore)):
            reply = ask.host.handle({"id": 7, "op": op, **arguments})
            assert reply["code"] == code
            assert reply["room_bytes"] >= 4 * begun.schema.size
            assert {file.name: file.read_bytes() for file in run_dir.iterdir()} == before
    # With room again all of it can be done.
    ask("restore", **restore)
    assert Path(ask("train", **again)["payload_file"]).name == "update-2.bin"


def test_a_snapshot_that_found_no_room_costs_a_rebase_nothing(
    ask: Ask, plain_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain on disk goes on where it began; the replica is what it should be all the same."""
    begun = begin(ask, plain_task, tmp_path)
    target = begun.vector + np.float32(0.01)
    replica = decode_snapshot(begun.snapshot_file.read_bytes(), begun.schema)
    delta = encode_delta(target, replica, begun.schema, CodecSpec("topk-log4", 0.5))
    (tmp_path / "delta").write_bytes(delta)
    apply_delta(replica, delta, begun.schema)
    expected = replica_sha256(requantise(replica, begun.schema, "int8"))

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    reply = ask(
        "apply_delta",
        version=1,
        file=str(tmp_path / "delta"),
        rebase=True,
        replica_hash=expected,
        snapshot_file=str(tmp_path / "base-1.bin"),
    )
    assert reply == {}
    assert ask("replica_hash")["hash"] == expected
    assert not (tmp_path / "base-1.bin").exists()
