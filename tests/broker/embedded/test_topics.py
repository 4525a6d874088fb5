"""Filters against the standard's examples, and against a second implementation."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from fedmq_broker.embedded.topics import Subscriptions, is_filter, is_topic, matches

LEVELS = st.sampled_from(["", "a", "b", "$s", "+", "#"])
PATHS = st.lists(LEVELS, min_size=1, max_size=5).map("/".join).filter(bool)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        # section 4.7.1.2
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        # section 4.7.1.3
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        # section 4.7.2
        ("#", "$SYS/uptime", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/uptime", True),
    ],
)
def test_the_examples_of_the_standard(topic_filter: str, topic: str, *, expected: bool) -> None:
    assert matches(topic_filter.split("/"), topic.split("/")) is expected


@given(PATHS.filter(is_filter), PATHS.filter(is_topic))
def test_matching_agrees_with_another_implementation(topic_filter: str, topic: str) -> None:
    assert matches(topic_filter.split("/"), topic.split("/")) is topic_matches_sub(topic_filter, topic)


@given(PATHS)
def test_filters_agree_with_a_pattern(path: str) -> None:
    assert is_filter(path) is bool(re.fullmatch(r"(?:(?:\+|[^+#/]*)/)*(?:\+|#|[^+#/]*)", path))
    assert is_topic(path) is (path.count("+") + path.count("#") == 0)


def test_bounds() -> None:
    assert not is_topic("")
    assert not is_filter("")
    assert is_topic("x" * 65_535)
    assert not is_topic("é" * 40_000)


@given(
    st.lists(
        st.tuples(st.booleans(), PATHS.filter(is_filter), st.integers(0, 3), st.integers(0, 1)), max_size=30
    )
)
def test_subscriptions_agree_with_a_plain_list(steps: list[tuple[bool, str, int, int]]) -> None:
    subscriptions: Subscriptions[int] = Subscriptions()
    plain: dict[tuple[str, int], int] = {}
    for add, topic_filter, who, qos in steps:
        if add:
            subscriptions.add(topic_filter, who, qos)
            plain[topic_filter, who] = qos
        else:
            subscriptions.remove(topic_filter, who)
            plain.pop((topic_filter, who), None)
    for topic in ("a", "a/b", "/a", "$s/a", "b//a"):
        expected: dict[int, int] = {}
        for (topic_filter, who), qos in plain.items():
            if topic_matches_sub(topic_filter, topic):
                expected[who] = max(qos, expected.get(who, 0))
        assert subscriptions.matching(topic) == expected
