"""The residual's file: whole or not there, and whose it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq_edge_agent.trainer.durable import sweep
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.paged import SLICE
from fedmq_edge_agent.trainer.residual import Owner, StoredResidual, new_residual

OWNER = Owner("a" * 64, "run-1", "dev-1")


def write(path: Path, residual: NDArray[np.float32], owner: Owner) -> None:
    with new_residual(path, len(residual), owner) as values:
        assert not values.vector.any()
        values.vector[:] = residual


def test_a_file_gives_back_what_went_in(tmp_path: Path) -> None:
    path = tmp_path / "residual-1.bin"
    residual = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    write(path, residual, OWNER)
    stored = StoredResidual(path, 1000, OWNER)
    np.testing.assert_array_equal(stored.read(), residual)
    assert stored.norm() == pytest.approx(np.linalg.norm(residual.astype(np.float64)), rel=1e-12)
    assert stored.owner == OWNER
    assert [file.name for file in tmp_path.iterdir()] == ["residual-1.bin"]


def test_every_torn_file_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "residual.bin"
    write(path, np.ones(8, np.float32), OWNER)
    whole = path.read_bytes()
    torn = [whole[:length] for length in range(len(whole))]
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for damaged in [*torn, *flipped, whole + b"\0", bytes(len(whole))]:
        path.write_bytes(damaged)
        with pytest.raises(TrainerError) as caught:
            StoredResidual(path, 8, OWNER)
        assert caught.value.code == "bad-residual"


@pytest.mark.parametrize(
    "other",
    [Owner("b" * 64, "run-1", "dev-1"), Owner("a" * 64, "run-2", "dev-1"), Owner("a" * 64, "run-1", "dev-2")],
)
def test_somebody_elses_residual_is_refused(tmp_path: Path, other: Owner) -> None:
    path = tmp_path / "residual.bin"
    write(path, np.ones(8, np.float32), other)
    with pytest.raises(TrainerError, match="belongs to"):
        StoredResidual(path, 8, OWNER)


def test_a_missing_one_and_one_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="cannot be read"):
        StoredResidual(tmp_path / "none", 8, OWNER)
    write(tmp_path / "small", np.ones(7, np.float32), OWNER)
    with pytest.raises(TrainerError, match="holds 7 values, not 8"):
        StoredResidual(tmp_path / "small", 8, OWNER)


def test_a_large_one_is_read_piece_by_piece(tmp_path: Path) -> None:
    path, count = tmp_path / "residual.bin", 2 * SLICE + 5
    write(path, np.arange(count, dtype=np.float32), OWNER)
    stored = StoredResidual(path, count, OWNER)
    assert [(begin, len(piece)) for begin, piece in stored.slices()] == [
        (0, SLICE),
        (SLICE, SLICE),
        (2 * SLICE, 5),
    ]
    assert np.array_equal(stored.read(), np.arange(count, dtype=np.float32))


def test_what_fails_on_the_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "residual.bin"
    write(path, np.ones(8, np.float32), OWNER)

    def interrupted() -> None:
        with new_residual(path, 8, OWNER) as values:
            values.vector[:] = 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert StoredResidual(path, 8, OWNER).read().tolist() == [1.0] * 8
    assert [file.name for file in tmp_path.iterdir()] == ["residual.bin"]


def test_one_of_the_first_form_is_read_too(tmp_path: Path) -> None:
    path, values = tmp_path / "residual.bin", np.arange(5, dtype="<f4").tobytes()
    who = msgpack.packb([OWNER.schema_hash, OWNER.run, OWNER.device])
    body = len(who).to_bytes(4, "big") + who + values
    path.write_bytes(b"fedmq residual 1\n" + hashlib.sha256(body).digest() + body)
    stored = StoredResidual(path, 5, OWNER)
    assert stored.read().tolist() == [0, 1, 2, 3, 4]
    assert stored.owner == OWNER


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    write(tmp_path / "residual-1.bin", np.ones(8, np.float32), OWNER)
    kept = ["base-7.bin.part", "base-7.bin.part.have", "residual-1.bin"]
    for name in (*kept[:2], ".residual-2.bin.4711.part"):
        (tmp_path / name).write_bytes(b"x")
    sweep(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == kept
