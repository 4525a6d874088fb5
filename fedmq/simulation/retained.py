"""Retained messages, and which of them a filter names, without a look at all of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from fedmq_broker.embedded.topics import matches


class Retained:
    """What stands on each topic."""

    def __init__(self) -> None:
        self.messages: dict[str, bytes] = {}
        self._below: dict[str, dict[str, None]] = {}
        """Topics by each of their heads: levels, each with its slash."""

    def put(self, topic: str, payload: bytes) -> None:
        """Let this stand there; nothing, if it is empty."""
        if not payload:
            if self.messages.pop(topic, None) is not None:
                for head in _heads(topic):
                    del self._below[head][topic]
            return
        if topic not in self.messages:
            for head in _heads(topic):
                self._below.setdefault(head, {})[topic] = None
        self.messages[topic] = payload

    def matching(self, topic_filter: str) -> list[tuple[str, bytes]]:
        """What a filter names, the topic that was first filled first."""
        wildcards = [place for place in map(topic_filter.find, "+#") if place >= 0]
        if not wildcards:
            payload = self.messages.get(topic_filter)
            return [] if payload is None else [(topic_filter, payload)]
        levels = topic_filter.split("/")
        candidates = self._below.get(topic_filter[: min(wildcards)], {})
        return [(topic, self.messages[topic]) for topic in candidates if matches(levels, topic.split("/"))]

    def clear(self) -> None:
        """Nothing stands anywhere."""
        self.messages.clear()
        self._below.clear()


def _heads(topic: str) -> Iterable[str]:
    """Nothing, its first level, its first two, ... all: `a/#` names `a`, too."""
    return accumulate((f"{level}/" for level in topic.split("/")), initial="")
