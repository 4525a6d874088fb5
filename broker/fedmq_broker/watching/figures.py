"""Mosquitto's `$SYS` topics as numbers, and what can be read between them.

A figure is named as Prometheus exporters for Mosquitto have it: `$SYS/` cut, slashes and blanks as `_`, so that
`$SYS/broker/retained messages/count` is `broker_retained_messages_count`. All that is a number is kept, whatever the
version of Mosquitto calls it.

**Queues.** Mosquitto tells nobody how full a client's queue is; it speaks when it drops. But it tells how many messages
it stores, each once however many clients wait for it, and how many of those are retained. What is stored and not
retained waits for somebody, so that no queue is longer than that difference: it is an upper bound, and an alarm at a
share of `max_queued_messages` comes before any queue is full. The same holds for bytes, but that the size of what is
retained is not told. What was stored when nothing waited last stands for it, or the least with as many retained.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

LOG_PREFIX: Final = "$SYS/broker/log/"
_PREFIX: Final = "$SYS/"
_MAX_FIGURES: Final = 512
_MAX_TEXT_CHARS: Final = 200
_NUMBER: Final = re.compile(rb"^\s*([+-]?\d{1,18}(?:\.\d{1,9})?)(?: seconds)?\s*$")
_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")
_BATCH_GAP_S: Final = 0.2
_BASELINE_S: Final = 600.0
_MAX_BASELINE: Final = 512

STORED: Final = "broker_store_messages_count"
STORED_BYTES: Final = "broker_store_messages_bytes"
RETAINED: Final = "broker_retained_messages_count"


def figure_name(topic: str) -> str:
    """What a `$SYS` topic is called."""
    return _NAME.sub("_", topic.removeprefix(_PREFIX))


class Figures:
    """The newest of each figure. Mosquitto publishes them in batches, one by one: those of a batch belong together."""

    def __init__(self) -> None:
        self.version = ""
        self.heard_at: float | None = None
        self._values: dict[str, float] = {}
        self._whole: dict[str, float] = {}
        """As the last batch left them."""
        self._stored: deque[tuple[float, float, float]] = deque(maxlen=_MAX_BASELINE)
        """Time, number of retained messages, bytes stored: batch by batch."""
        self._idle_bytes: float | None = None
        """What was stored when nothing waited last."""

    def heard(self, topic: str, payload: bytes, *, now: float) -> None:
        """A message on a `$SYS` topic; whatever is no number is passed over."""
        if self.heard_at is None or now - self.heard_at > _BATCH_GAP_S:
            self._close(now=now if self.heard_at is None else self.heard_at)
        self.heard_at = now
        if topic == "$SYS/broker/version":
            self.version = payload[:_MAX_TEXT_CHARS].decode("utf-8", errors="replace")
            return
        found = _NUMBER.match(payload[:_MAX_TEXT_CHARS])
        name = figure_name(topic)
        if found is not None and (name in self._values or len(self._values) < _MAX_FIGURES):
            self._values[name] = float(found[1])

    def at(self, now: float) -> dict[str, float]:
        """The figures, all of one batch."""
        if self.heard_at is not None and now - self.heard_at > _BATCH_GAP_S:
            self._close(now=self.heard_at)
        return self._whole or self._values

    def queued_messages(self, now: float) -> float | None:
        """How many messages wait for clients: no client's queue is longer. None: the broker does not tell."""
        values = self.at(now)
        if STORED not in values or RETAINED not in values:
            return None
        return max(0.0, values[STORED] - values[RETAINED])

    def queued_bytes(self, now: float) -> float | None:
        """About how many bytes wait for clients; None: the broker does not tell."""
        values = self.at(now)
        if STORED_BYTES not in values or RETAINED not in values or not self.queued_messages(now):
            return 0.0 if STORED_BYTES in values and RETAINED in values else None
        alike = [
            size
            for at, retained, size in self._stored
            if at >= now - _BASELINE_S and retained == values[RETAINED]
        ]
        if self._idle_bytes is not None:
            alike.append(self._idle_bytes)
        return values[STORED_BYTES] - min([*alike, values[STORED_BYTES]])

    def _close(self, *, now: float) -> None:
        if self._whole == self._values:
            return
        self._whole = dict(self._values)
        if STORED_BYTES in self._whole and RETAINED in self._whole:
            self._stored.append((now, self._whole[RETAINED], self._whole[STORED_BYTES]))
            if self._whole.get(STORED, 0.0) <= self._whole[RETAINED]:
                self._idle_bytes = self._whole[STORED_BYTES]
