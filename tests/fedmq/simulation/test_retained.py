"""Finding retained messages by their heads gives what looking at all of them gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedmq.simulation.retained import Retained
from fedmq_broker.embedded.topics import matches

LEVELS = st.lists(st.sampled_from(["a", "b", "", "dev"]), min_size=1, max_size=4)
TOPICS = LEVELS.map("/".join)
WILD = st.lists(st.sampled_from(["a", "b", "", "dev", "+"]), min_size=1, max_size=4)
FILTERS = st.one_of(WILD.map("/".join), WILD.map(lambda levels: "/".join([*levels, "#"])))


@given(st.lists(st.tuples(TOPICS, st.sampled_from([b"", b"1", b"2"])), max_size=30), FILTERS)
def test_a_filter_names_the_same_as_by_looking_at_all(said: list[tuple[str, bytes]], wanted: str) -> None:
    retained, plain = Retained(), dict[str, bytes]()
    for topic, payload in said:
        retained.put(topic, payload)
        if payload:
            plain[topic] = payload
        else:
            plain.pop(topic, None)
    assert retained.messages == plain
    levels = wanted.split("/")
    expected = [(topic, data) for topic, data in plain.items() if matches(levels, topic.split("/"))]
    assert retained.matching(wanted) == expected
    retained.clear()
    assert retained.matching(wanted) == []
