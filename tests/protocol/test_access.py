"""Who may do what: nobody as another, and exactly what the protocol needs."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fedmq_broker.embedded.topics import is_filter, matches
from fedmq_protocol.access import (
    CONTROL_TOPIC,
    COORDINATOR,
    MONITOR,
    OPERATOR,
    ROLES,
    allows,
    check_member,
    covers,
    rules,
)
from fedmq_protocol.errors import UsageError
from fedmq_protocol.topics import DownKind, Topics, UpKind

TOPICS = Topics("home")
OTHER = Topics("other")
LEVELS = st.sampled_from(["a", "b", "$x", "", "+"])
FILTERS = (
    st.tuples(st.lists(LEVELS, max_size=3), LEVELS | st.just("#"))
    .map(lambda levels: "/".join([*levels[0], levels[1]]))
    .filter(is_filter)  # all but the empty one
)
PLAIN = st.lists(st.sampled_from(["a", "b", "$x", ""]), min_size=1, max_size=4).map("/".join)


def test_a_device_may_do_this_and_nothing_else() -> None:
    root = "fedmq/v1/home"
    said = {(rule.action, rule.filter.removeprefix(root)) for rule in rules(TOPICS, "dev-1")}
    read = [
        "/coordinator/status",
        "/coordinator/run",
        "/coordinator/turn",
        "/model/+/+/+",
        "/dev/dev-1/down/+",
    ]
    spoken = ["/dev/dev-1/presence", *(f"/dev/dev-1/up/{kind}" for kind in get_args(UpKind))]
    assert said == {(action, each) for each in read for action in ("subscribe", "receive")} | {
        ("publish", each) for each in spoken
    }


def test_what_the_protocol_s_own_filters_ask_for_is_granted() -> None:
    device, coordinator = rules(TOPICS, "dev-1"), rules(TOPICS, COORDINATOR)
    for topic_filter in TOPICS.device_filters("dev-1"):
        assert allows(device, "subscribe", topic_filter)
    for topic_filter in TOPICS.coordinator_filters():
        assert allows(coordinator, "subscribe", topic_filter)
    assert allows(device, "subscribe", TOPICS.chunk("digits-1", 7, "snapshot", 12))
    for down in get_args(DownKind):
        assert allows(coordinator, "publish", TOPICS.down("dev-1", down))
        assert allows(device, "receive", TOPICS.down("dev-1", down))
    for up in get_args(UpKind):
        assert allows(device, "publish", TOPICS.up("dev-1", up))
        assert allows(coordinator, "receive", TOPICS.up("dev-1", up))


@pytest.mark.parametrize("member", ["dev-1", COORDINATOR, MONITOR])
def test_only_the_operator_commands_the_broker(member: str) -> None:
    for action in ("publish", "receive", "subscribe"):
        assert not allows(rules(TOPICS, member), action, CONTROL_TOPIC)
        assert not allows(rules(TOPICS, member), action, f"{CONTROL_TOPIC}/response")
    assert allows(rules(TOPICS, OPERATOR), "publish", CONTROL_TOPIC)
    assert allows(rules(TOPICS, OPERATOR), "subscribe", f"{CONTROL_TOPIC}/response")


@pytest.mark.parametrize("member", ["dev-1", *ROLES])
def test_nobody_reaches_another_federation(member: str) -> None:
    for rule in rules(TOPICS, member):
        assert rule.filter.split("/")[0] in {"fedmq", "$SYS", "$CONTROL"}
        assert not covers(rule.filter, f"{OTHER.root}/#")
        assert not covers(rule.filter, OTHER.announcement)


@pytest.mark.parametrize("name", ["", "@nobody", "a/b", "+", "#", "Dev", "a\n", "dev-1 ", "@coordinator "])
def test_a_name_that_can_be_no_member(name: str) -> None:
    with pytest.raises(UsageError, match="not usable"):
        check_member(name)
    with pytest.raises(UsageError, match="not usable"):
        rules(TOPICS, name)


@st.composite
def widened(draw: st.DrawFn) -> tuple[str, str]:
    """A filter, and one that is wider here and there, which often covers it."""
    narrow = draw(FILTERS)
    levels = [draw(st.sampled_from([level, level, "+"])) for level in narrow.split("/")]
    kept = draw(st.integers(0, len(levels)))
    return draw(st.sampled_from(["/".join(levels), "/".join([*levels[:kept], "#"])])), narrow


@given(widened(), PLAIN)
def test_a_filter_that_covers_another_matches_whatever_that_matches(
    filters: tuple[str, str], topic: str
) -> None:
    wide, narrow = filters
    if covers(wide, narrow) and matches(narrow.split("/"), topic.split("/")):
        assert matches(wide.split("/"), topic.split("/"))


@given(FILTERS, PLAIN)
def test_of_a_topic_to_cover_is_to_match(wide: str, topic: str) -> None:
    assert covers(wide, topic) == matches(wide.split("/"), topic.split("/"))


@example("+/#", "#")
@given(FILTERS, FILTERS)
def test_a_filter_that_does_not_cover_another_misses_some_topic_of_it(wide: str, narrow: str) -> None:
    """The witness: each `+` filled with a level that nobody names, `#` with none, one and two of them."""
    assume(not covers(wide, narrow))
    stem = narrow.replace("+", "other")
    tails = [stem.replace("#", "other/other"), stem.replace("#", "other"), stem.removesuffix("/#")]
    missed = [topic for topic in tails if not matches(wide.split("/"), topic.split("/"))]
    odd = narrow.startswith(("+", "#")) and wide.startswith("$")  # no topic of it begins with `$`
    assert missed or odd
