"""The residual's bound, and the density of first updates."""

from __future__ import annotations

import pytest

from fedmq_edge_agent.trainer.feedback import cap_factor, density
from fedmq_protocol.messages import UploadSettings


def test_a_short_residual_is_left_alone() -> None:
    assert cap_factor(5.0, delta_norm=0.5, cap=10.0) == (1.0, 0.0)


def test_of_a_long_one_the_rest_is_counted() -> None:
    factor, dropped = cap_factor(5.0, delta_norm=0.1, cap=10.0)
    assert factor == pytest.approx(0.2)
    assert dropped == pytest.approx(4.0)


def test_nothing_learned_nothing_kept() -> None:
    assert cap_factor(5.0, delta_norm=0.0, cap=10.0) == (0.0, 5.0)


def test_density_falls_geometrically() -> None:
    upload = UploadSettings(codec="topk-log4", density=0.01, first_density=0.16, anneal_updates=4)
    assert [density(upload, done) for done in range(6)] == pytest.approx([0.16, 0.08, 0.04, 0.02, 0.01, 0.01])
    at_once = UploadSettings(codec="topk-log4", density=0.01, first_density=0.16)
    assert density(at_once, 0) == 0.01
