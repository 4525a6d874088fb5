"""A packet is taken once, in whatever order packets come, and an epoch that is over stays over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_protocol.replays import ReplayError, ReplayGuard


def takes(guard: ReplayGuard, epoch: int, sequence: int) -> bool:
    try:
        guard.check(epoch, sequence)
    except ReplayError:
        return False
    return True


def test_each_sequence_is_taken_once_in_any_order_and_with_gaps() -> None:
    guard = ReplayGuard()
    assert [takes(guard, 1, sequence) for sequence in (5, 3, 9, 3, 5, 9, 4)] == [
        True,
        True,
        True,
        False,
        False,
        False,
        True,
    ]


def test_a_new_epoch_begins_anew_and_ends_the_old_one() -> None:
    guard = ReplayGuard()
    assert takes(guard, 1, 7)
    assert takes(guard, 2, 1)
    with pytest.raises(ReplayError) as caught:
        guard.check(1, 8)
    assert caught.value.reason == "old-epoch"
    assert takes(guard, 2, 7)


def test_what_is_older_than_all_that_is_remembered_counts_as_seen() -> None:
    guard = ReplayGuard(window=4)
    for sequence in (10, 20, 30, 40, 50):
        assert takes(guard, 1, sequence)
    assert not takes(guard, 1, 5)
    assert not takes(guard, 1, 10)
    assert takes(guard, 1, 15)


def test_an_epoch_that_is_known_from_elsewhere_refuses_the_ones_before() -> None:
    guard = ReplayGuard(3)
    assert not takes(guard, 2, 1)
    guard.advance(4)
    assert not takes(guard, 3, 1)
    assert takes(guard, 4, 1)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=120),
    st.integers(1, 8),
)
def test_nothing_is_ever_taken_twice_and_memory_is_bounded(
    packets: list[tuple[int, int]], window: int
) -> None:
    guard = ReplayGuard(window=window)
    taken = [packet for packet in packets if takes(guard, *packet)]
    assert len(taken) == len(set(taken))
    assert [epoch for epoch, _ in taken] == sorted(epoch for epoch, _ in taken)
    assert len(guard._seen) == len(guard._newest) <= window


@given(st.permutations(range(30)))
def test_within_the_window_nothing_new_is_refused(order: list[int]) -> None:
    guard = ReplayGuard(window=30)
    assert all(takes(guard, 1, sequence) for sequence in order)
