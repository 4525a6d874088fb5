"""Virtual time: order, timers, streams of chance, and clocks that are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.simulation.world import LocalClock, SpinError, Timer, World


def test_things_happen_in_the_order_of_their_times_and_then_of_their_setting() -> None:
    world, done = World(1, start_s=0.0), list[str]()
    world.at(2.0, lambda: done.append("c"))
    world.at(1.0, lambda: done.append("a"))
    world.at(1.0, lambda: done.append("b"))
    world.at(-5.0, lambda: done.append(f"now, at {world.now}"))
    while world.step():
        pass
    assert done == ["now, at 0.0", "a", "b", "c"]
    assert (world.now, world.steps) == (2.0, 4)


def test_a_pass_of_time_ends_when_it_should() -> None:
    world, done = World(1, start_s=0.0), list[float]()
    for second in range(5):
        world.at(float(second), lambda: done.append(world.now))
    world.run(2.5)
    assert (done, world.now, world.next_at) == ([0.0, 1.0, 2.0], 2.5, 3.0)
    world.run(100.0, done=lambda: len(done) == 4)
    assert world.now == 3.0


def test_whoever_looks_after_each_step_sees_each() -> None:
    world, seen = World(1, start_s=0.0), list[int]()
    world.after_step = lambda: seen.append(world.steps)
    for _ in range(3):
        world.after(1.0, lambda: None)
    world.run(10.0)
    assert seen == [1, 2, 3]


def test_streams_are_their_own_and_the_same_again() -> None:
    one, other = World(7), World(7)
    one.stream("a").random()
    drawn = [one.stream("a", 1).random(), one.stream("b").random(), World(8).stream("b").random()]
    assert [other.stream("a", 1).random(), other.stream("b").random()] == drawn[:2]
    assert len(set(drawn)) == 3


@given(st.lists(st.tuples(st.floats(0, 10), st.none() | st.floats(0, 20)), max_size=20))
def test_a_timer_wakes_at_its_last_deadline_and_at_no_other(
    changes: list[tuple[float, float | None]],
) -> None:
    world, woken = World(1, start_s=0.0), list[float]()
    timer = Timer(world, lambda: woken.append(world.now))
    expected: list[float] = []
    pending: float | None = None
    changes.sort(key=lambda change: change[0])
    for at, deadline in changes:
        world.at(at, lambda deadline=deadline: timer.set(deadline))  # type: ignore[misc]
    for (
        at,
        deadline,
    ) in changes:  # what a plain list says; a deadline that is due comes before a change later on
        if pending is not None and pending < at:
            expected.append(pending)
            pending = None
        pending = None if deadline is None else max(deadline, at)
    if pending is not None:
        expected.append(pending)
    while world.step():
        pass
    assert set(expected) <= set(woken)  # a wake at the very moment of a change may come before it
    assert len(woken) <= len(expected) + sum(at in woken for at, _ in changes)


def test_who_wants_to_be_woken_now_for_ever_is_stopped() -> None:
    world = World(1)
    timer = Timer(world, lambda: timer.set(world.now))
    timer.set(world.now)
    with pytest.raises(SpinError):
        world.run(world.now + 1.0)


def test_a_clock_may_be_ahead_run_fast_and_be_put_back() -> None:
    world = World(1, start_s=1_000.0)
    clock = LocalClock(world, ahead_s=10.0, rate=2.0)
    assert clock() == 1_010.0
    world.run(1_005.0)
    assert clock() == 1_020.0
    clock.jump(-100.0)
    assert clock() == 920.0
