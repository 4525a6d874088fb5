"""Bytes by device: out of counters that come twice, begin anew, and are replayed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedmq_coordinator.core.traffic import Meter, Moved
from fedmq_protocol.messages import Offer, Presence, UploadChunk
from tests.coordinator.core.world import TASK, World, settings

Lives = st.lists(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=8), max_size=6
)


@given(lives=Lives, device=st.sampled_from(["a", "b"]))
def test_what_grew_adds_up_to_what_was_moved_in_all_lives_of_an_agent(
    lives: list[list[tuple[int, int]]], device: str
) -> None:
    """A life that is told of by counters no smaller than the last ones' is taken for its continuation."""
    meter, moved, want = Meter(), Moved(), [0, 0]
    last = (0, 0)
    for life in lives:
        up = down = 0
        for more_up, more_down in life:
            up, down = up + more_up, down + more_down
            for _copy in range(2):
                moved.add(device, *meter.grown(device, up, down))
        first = life[0]
        if first[0] < last[0] or first[1] < last[1]:
            want = [want[0] + up, want[1] + down]
        else:
            want = [want[0] + up - last[0], want[1] + down - last[1]]
        last = up, down
    assert (moved.sent, moved.received) == tuple(want)


def test_the_run_under_way_knows_what_each_device_moved_and_a_restart_does_too() -> None:
    world = World()
    for name in ("a", "b"):
        world.join(name)
    world.start_run(settings(rounds=5))
    world.send("a", 0.1, traffic=(1_000, 9_000))
    world.send("b", 0.1, traffic=(70, 80))
    world.send("a", 0.1, traffic=(1_500, 9_900))
    world.join("a", session=2)
    world.send("b", 0.1, traffic=(90, 100))
    world.send("a", 0.1, traffic=(200, 100))
    moved = world.core.run_view("r1", now=world.now).moved
    assert moved == {"a": (1_700, 10_000), "b": (90, 100)}
    again = world.replayed()
    assert again.runs["r1"].moved.by_device == moved
    assert (again.state.devices["a"].sent, again.state.devices["a"].received) == (1_700, 10_000)


def test_a_goodbye_counts_for_the_run_that_it_leaves() -> None:
    world = World()
    device = world.join("a")
    world.start_run(settings(rounds=5))
    goodbye = Presence(online=False, session=1, public_key=device.sealer.public_key, traffic=(10, 20))
    world.say(device, "presence", goodbye)
    assert world.core.run_view("r1", now=world.now).moved == {"a": (10, 20)}


def test_an_upload_that_began_before_the_agents_last_word_is_no_restart_of_it() -> None:
    world = World()
    device = world.join("a")
    world.join("b")
    world.start_run(settings(rounds=5))
    update = world.update("a", 0.1, traffic=(1_000, 1_100))
    world.say(device, "offer", Offer(header=update.header, chunk_bytes=1_024))
    key = device.sealer.public_key
    problem = Presence(
        online=True, session=1, public_key=key, tasks=[TASK], problem="hot", traffic=(5_000, 5_100)
    )
    world.say(device, "presence", problem)
    world.say(
        device, "chunk", UploadChunk(run="r1", counter=update.header.counter, index=0, data=update.data)
    )
    known = world.core.state.devices["a"]
    assert world.core.runs["r1"].num_accepted == 1
    assert (known.sent, known.received) == (5_000, 5_100)
    world.join("a", session=2)
    world.send("b", 0.1)
    assert world.send("a", 0.1, traffic=(300, 200)).outcome == "accepted"
    moved = world.core.run_view("r1", now=world.now).moved
    assert moved == {"a": (5_300, 5_300)}, "a new session may be another start of the agent"
    assert world.replayed().runs["r1"].moved.by_device == moved
