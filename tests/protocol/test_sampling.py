"""The sampling rule: golden fractions, computed by hand from the rule, and the share that it takes."""

from __future__ import annotations

import hashlib

import pytest
from pydantic import ValidationError

from fedmq_protocol.messages import Cohort
from fedmq_protocol.sampling import in_cohort, sample

SEED = bytes(range(16))


def test_the_fraction_is_the_first_eight_bytes_of_sha256() -> None:
    digest = hashlib.sha256(SEED + (5).to_bytes(8, "big") + b"dev-3").hexdigest()
    assert sample(SEED, 5, "dev-3") == int(digest[:16], 16) / 2**64


def test_the_rate_is_met() -> None:
    cohort = Cohort(rate=0.3, seed=SEED)
    taken = sum(in_cohort(cohort, 1, f"dev-{i}") for i in range(20_000))
    assert abs(taken / 20_000 - 0.3) < 4 * (0.3 * 0.7 / 20_000) ** 0.5


def test_rounds_choose_anew() -> None:
    cohort = Cohort(rate=0.5, seed=SEED)
    chosen = [frozenset(d for d in range(50) if in_cohort(cohort, r, f"dev-{d}")) for r in range(20)]
    assert len(set(chosen)) == 20


def test_all_and_none() -> None:
    assert all(in_cohort(Cohort(rate=1.0, seed=SEED), 1, f"d{i}") for i in range(100))
    assert not any(in_cohort(Cohort(rate=0.0, seed=SEED), 1, f"d{i}") for i in range(100))


def test_a_list_is_a_list() -> None:
    assert in_cohort(Cohort(devices=["a"]), 1, "a")
    assert not in_cohort(Cohort(devices=["a"]), 1, "b")


@pytest.mark.parametrize(
    "fields", [{}, {"devices": [], "rate": 0.5, "seed": SEED}, {"rate": 0.5}, {"seed": SEED}]
)
def test_a_cohort_is_one_or_the_other(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Cohort.model_validate(fields)
