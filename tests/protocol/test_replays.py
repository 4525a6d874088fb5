"""A packet is taken once, in whatever order packets come, and an epoch that is over stays over."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_protocol.replays import FROM_DEVICE, ReplayError, ReplayGuard


def takes(guard: ReplayGuard, epoch: int, sequence: int) -> bool:
    try:
        guard.check(epoch, sequence)
    except ReplayError:
        return False
    return True


def test_each_sequence_is_taken_once_in_any_order_and_with_gaps() -> None:
    guard = ReplayGuard(64)
    taken = [takes(guard, 1, sequence) for sequence in (5, 3, 9, 3, 5, 9, 4)]
    assert taken == [True, True, True, False, False, False, True]


def test_a_new_epoch_begins_anew_and_ends_the_old_one() -> None:
    guard = ReplayGuard(64)
    assert takes(guard, 1, 7)
    assert takes(guard, 2, 1)
    with pytest.raises(ReplayError) as caught:
        guard.check(1, 8)
    assert caught.value.reason == "old-epoch"
    assert takes(guard, 2, 7)


def test_what_is_older_than_the_window_counts_as_seen() -> None:
    guard = ReplayGuard(4)
    assert takes(guard, 1, 50)
    assert not takes(guard, 1, 46)
    assert takes(guard, 1, 47)
    assert takes(guard, 1, 51)
    assert not takes(guard, 1, 47)


def test_an_epoch_that_is_known_from_elsewhere_refuses_the_ones_before() -> None:
    guard = ReplayGuard(64)
    guard.advance(4)
    assert not takes(guard, 3, 1)
    assert takes(guard, 4, 1)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40) | st.just(2**53 - 1)), max_size=120),
    st.integers(1, 8),
)
def test_it_is_a_set_of_what_was_seen_and_a_floor(packets: list[tuple[int, int]], window: int) -> None:
    guard, epoch, seen = ReplayGuard(window), 0, set[int]()
    for packet_epoch, sequence in packets:
        if packet_epoch > epoch:
            epoch, seen = packet_epoch, set()
        new = packet_epoch == epoch and sequence not in seen and sequence > max(seen, default=0) - window
        assert takes(guard, packet_epoch, sequence) == new
        seen |= {sequence} if new else set()
        assert guard._seen.bit_length() <= window


@given(st.permutations(range(30)))
def test_within_the_window_nothing_new_is_refused(order: list[int]) -> None:
    guard = ReplayGuard(30)
    assert all(takes(guard, 1, sequence) for sequence in order)


def test_a_device_costs_the_coordinator_little() -> None:
    guard = ReplayGuard(FROM_DEVICE)
    for sequence in range(1, 3_000):
        guard.check(2**40, sequence)
    assert sys.getsizeof(guard._seen) < 200  # the rest is three small numbers
