"""Topics: what is made can be taken apart again, and nothing else can."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_protocol.errors import RemoteError, UsageError
from fedmq_protocol.topics import ChunkTopic, DeviceTopic, Topics, check_id, subject

IDS = st.from_regex(re.compile(r"[a-z0-9][a-z0-9._-]{0,20}"), fullmatch=True)
TOPICS = Topics("home")


@given(IDS, st.sampled_from(["hello", "update", "offer", "chunk", "report", "get"]))
def test_up_topics_round_trip(device: str, kind: str) -> None:
    topic = f"fedmq/v1/home/dev/{device}/up/{kind}"
    assert TOPICS.parse_device(topic) == DeviceTopic(device, "up", kind)


@given(IDS, st.integers(0, 2**53 - 1), st.sampled_from(["delta", "snapshot"]), st.integers(0, 65_535))
def test_chunk_topics_round_trip(run: str, version: int, blob: str, index: int) -> None:
    topic = TOPICS.chunk(run, version, blob, index)  # type: ignore[arg-type]
    assert TOPICS.parse_chunk(topic) == ChunkTopic(run, version, blob, index)  # type: ignore[arg-type]
    assert topic.count("/") <= 7, "AWS IoT takes seven slashes at most"


@given(st.text(max_size=80))
def test_anything_else_is_refused(topic: str) -> None:
    for parse in (TOPICS.parse_device, TOPICS.parse_chunk):
        with pytest.raises(RemoteError):
            parse(topic)


@pytest.mark.parametrize(
    "topic",
    [
        "fedmq/v1/home/dev/Dev-1/presence",
        "fedmq/v1/home/dev/a/up/everything",
        "fedmq/v1/other/dev/a/presence",
        "fedmq/v1/home/dev/a/b/up/hello",
        "fedmq/v1/home/dev/+/presence",
        "fedmq/v2/home/dev/a/presence",
    ],
)
def test_near_misses_are_refused(topic: str) -> None:
    with pytest.raises(RemoteError):
        TOPICS.parse_device(topic)


@pytest.mark.parametrize(
    "topic", ["r/01/d0", "r/1/x0", "r/1/d-1", "r/99999999999999999/d0", "R/1/d0", "r/1/d0/x"]
)
def test_near_misses_of_chunks_are_refused(topic: str) -> None:
    with pytest.raises(RemoteError):
        TOPICS.parse_chunk(f"fedmq/v1/home/model/{topic}")


@pytest.mark.parametrize("name", ["", "a/b", "a+b", "#", "Home", "ä", "a" * 65, "-a", "a b"])
def test_names_that_cannot_stand_in_a_topic(name: str) -> None:
    with pytest.raises(UsageError, match="not usable"):
        Topics(name)
    with pytest.raises(UsageError, match="device"):
        check_id(name, what="device")


def test_device_filters_need_no_multilevel_wildcard() -> None:
    assert all("#" not in each for each in TOPICS.device_filters("dev-1"))


@given(IDS)
def test_a_topic_says_what_it_is_about(name: str) -> None:
    assert subject(TOPICS.presence(name)) == subject(TOPICS.down(name, "lease")) == {"device": name}
    assert subject(TOPICS.chunk(name, 3, "delta", 0)) == {"run": name}
    assert subject(TOPICS.announcement) == subject("m/0") == {}
