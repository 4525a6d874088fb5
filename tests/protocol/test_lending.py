"""What is lent has one user at a time, is used again, and is not lent any more after a failure."""

from __future__ import annotations

import contextlib
from itertools import count

from fedmq_protocol.lending import Pool


def test_one_user_at_a_time_and_then_the_next() -> None:
    pool = Pool(count().__next__)
    with pool.lend() as one, pool.lend() as other:
        assert (one, other) == (0, 1)
    with pool.lend() as again:
        assert again in {one, other}


def test_what_failed_is_not_lent_again() -> None:
    pool = Pool(count().__next__)
    with contextlib.suppress(ZeroDivisionError), pool.lend():
        raise ZeroDivisionError
    with pool.lend() as fresh:
        assert fresh == 1
