"""The residual: its bound, its file, and the density of first updates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.feedback import Owner, capped, density, read_residual, write_residual
from fedmq_protocol.messages import UploadSettings

OWNER = Owner("a" * 64, "run-1", "dev-1")


def test_a_short_residual_is_left_alone() -> None:
    residual = np.array([3.0, 4.0], np.float32)
    kept, dropped = capped(residual, delta_norm=0.5, cap=10.0)
    assert kept is residual
    assert dropped == 0.0


def test_a_long_one_keeps_its_direction_and_the_rest_is_counted() -> None:
    kept, dropped = capped(np.array([3.0, 4.0], np.float32), delta_norm=0.1, cap=10.0)
    np.testing.assert_allclose(kept, [0.6, 0.8], rtol=1e-6)
    assert dropped == pytest.approx(4.0)


def test_nothing_learned_nothing_kept() -> None:
    kept, dropped = capped(np.array([3.0, 4.0], np.float32), delta_norm=0.0, cap=10.0)
    assert not kept.any()
    assert dropped == pytest.approx(5.0)


def test_density_falls_geometrically() -> None:
    upload = UploadSettings(codec="topk-log4", density=0.01, first_density=0.16, anneal_updates=4)
    assert [density(upload, done) for done in range(6)] == pytest.approx([0.16, 0.08, 0.04, 0.02, 0.01, 0.01])
    at_once = UploadSettings(codec="topk-log4", density=0.01, first_density=0.16)
    assert density(at_once, 0) == 0.01


def test_a_file_gives_back_what_went_in(tmp_path: Path) -> None:
    path = tmp_path / "residual-1.bin"
    residual = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    write_residual(path, residual, OWNER)
    values, owner = read_residual(path, 1000, OWNER)
    np.testing.assert_array_equal(values, residual)
    assert owner == OWNER
    assert values.flags.writeable
    assert [file.name for file in tmp_path.iterdir()] == ["residual-1.bin"]


def test_every_torn_file_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "residual.bin"
    write_residual(path, np.ones(8, np.float32), OWNER)
    whole = path.read_bytes()
    torn = [whole[:length] for length in range(len(whole))]
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for damaged in [*torn, *flipped, whole + b"\0", bytes(len(whole))]:
        path.write_bytes(damaged)
        with pytest.raises(TrainerError) as caught:
            read_residual(path, 8, OWNER)
        assert caught.value.code == "bad-residual"


@pytest.mark.parametrize(
    "other",
    [Owner("b" * 64, "run-1", "dev-1"), Owner("a" * 64, "run-2", "dev-1"), Owner("a" * 64, "run-1", "dev-2")],
)
def test_somebody_elses_residual_is_refused(tmp_path: Path, other: Owner) -> None:
    path = tmp_path / "residual.bin"
    write_residual(path, np.ones(8, np.float32), other)
    with pytest.raises(TrainerError, match="belongs to"):
        read_residual(path, 8, OWNER)


def test_a_missing_one_and_one_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="cannot be read"):
        read_residual(tmp_path / "none", 8, OWNER)
    write_residual(tmp_path / "small", np.ones(7, np.float32), OWNER)
    with pytest.raises(TrainerError, match="holds 7 values, not 8"):
        read_residual(tmp_path / "small", 8, OWNER)
