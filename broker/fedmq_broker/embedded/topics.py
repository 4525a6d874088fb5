"""Topic names and filters of MQTT 3.1.1, section 4.7, and who is subscribed to what."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import accumulate
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_MAX_TOPIC_BYTES = 65_535


def is_topic(topic: str) -> bool:
    """Whether a message may be published on it: not empty, no wildcard."""
    return 0 < len(topic.encode()) <= _MAX_TOPIC_BYTES and "+" not in topic and "#" not in topic


def is_filter(topic_filter: str) -> bool:
    """Whether one may subscribe to it: a wildcard fills its level, and `#` stands last."""
    levels = topic_filter.split("/")
    return (
        0 < len(topic_filter.encode()) <= _MAX_TOPIC_BYTES
        and all(level in {"+", "#"} or not set(level) & {"+", "#"} for level in levels)
        and "#" not in levels[:-1]
    )


def matches(filter_levels: list[str], topic_levels: list[str]) -> bool:
    """Whether a filter matches a topic, both cut into levels. Linear: there is nothing for an attacker to blow up."""
    if topic_levels[0].startswith("$") and filter_levels[0] in {"+", "#"}:
        return False  # section 4.7.2
    for position, level in enumerate(filter_levels):
        if level == "#":
            return True  # `a/#` matches `a` too: then we are here right behind the last level
        if position >= len(topic_levels) or level not in {"+", topic_levels[position]}:
            return False
    return len(filter_levels) == len(topic_levels)


class Subscriptions(Generic[K]):
    """Who is subscribed to which filter, at which QoS.

    Filters with wildcards are found by what stands before the first of them, so that a message costs a few look-ups by
    its number of levels, however many clients there are with a filter of their own.
    """

    def __init__(self) -> None:
        self._exact: dict[str, dict[K, int]] = {}
        self._wildcard: dict[str, dict[str, tuple[list[str], dict[K, int]]]] = {}

    def add(self, topic_filter: str, who: K, qos: int) -> None:
        if _has_wildcard(topic_filter):
            filters = self._wildcard.setdefault(_head(topic_filter), {})
            _, holders = filters.setdefault(topic_filter, (topic_filter.split("/"), {}))
        else:
            holders = self._exact.setdefault(topic_filter, {})
        holders[who] = qos

    def remove(self, topic_filter: str, who: K) -> None:
        if _has_wildcard(topic_filter):
            head = _head(topic_filter)
            filters = self._wildcard.get(head, {})
            if topic_filter in filters:
                _, holders = filters[topic_filter]
                holders.pop(who, None)
                if not holders:
                    del filters[topic_filter]
                    if not filters:
                        del self._wildcard[head]
        elif topic_filter in self._exact:
            holders = self._exact[topic_filter]
            holders.pop(who, None)
            if not holders:
                del self._exact[topic_filter]

    def matching(self, topic: str) -> dict[K, int]:
        """Who gets a message on the topic, once each, at the highest QoS of their matching filters."""
        found = dict(self._exact.get(topic, {}))
        if self._wildcard:
            levels = topic.split("/")
            for head in accumulate((f"{level}/" for level in levels), initial=""):
                for filter_levels, holders in self._wildcard.get(head, {}).values():
                    if matches(filter_levels, levels):
                        for who, qos in holders.items():
                            found[who] = max(qos, found.get(who, 0))
        return found


def _has_wildcard(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


def _head(topic_filter: str) -> str:
    """What of a filter stands before its first wildcard: nothing, or levels, each with its slash."""
    return topic_filter[: min(place for place in map(topic_filter.find, "+#") if place >= 0)]
