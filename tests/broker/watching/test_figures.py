"""`$SYS` as numbers, and what is read between them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_broker.watching.figures import Figures, figure_name

STORE, SIZE, RETAINED = (
    "$SYS/broker/store/messages/count",
    "$SYS/broker/store/messages/bytes",
    "$SYS/broker/retained messages/count",
)


def batch(figures: Figures, values: Mapping[str, float], *, at: float) -> None:
    for number, (topic, value) in enumerate(values.items()):
        figures.heard(topic, f"{value:g}".encode(), now=at + number * 0.001)


def stored(count: int, size: int, retained: int) -> dict[str, float]:
    return {STORE: count, SIZE: size, RETAINED: retained}


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("$SYS/broker/clients/connected", "broker_clients_connected"),
        ("$SYS/broker/publish/messages/dropped", "broker_publish_messages_dropped"),
        ("$SYS/broker/retained messages/count", "broker_retained_messages_count"),
        ("$SYS/broker/load/bytes/received/1min", "broker_load_bytes_received_1min"),
    ],
)
def test_names_are_those_of_other_exporters(topic: str, name: str) -> None:
    assert figure_name(topic) == name


def test_numbers_are_kept_and_texts_are_not() -> None:
    figures = Figures()
    figures.heard("$SYS/broker/version", b"mosquitto version 2.0.11", now=1.0)
    figures.heard("$SYS/broker/uptime", b"12 seconds", now=1.0)
    figures.heard("$SYS/broker/load/sockets/1min", b"0.95", now=1.0)
    figures.heard("$SYS/broker/timestamp", b"Thu, 4 Mar 2021", now=1.0)
    assert figures.version == "mosquitto version 2.0.11"
    assert figures.at(2.0) == {"broker_uptime": 12.0, "broker_load_sockets_1min": 0.95}


def test_a_batch_is_seen_whole_or_not_at_all() -> None:
    figures = Figures()
    batch(figures, stored(50, 500, 50), at=10.0)
    assert figures.queued_messages(11.0) == 0
    figures.heard(STORE, b"90", now=20.0)  # the number of retained ones is not told yet
    assert figures.queued_messages(20.05) == 0
    figures.heard(RETAINED, b"90", now=20.1)
    assert figures.queued_messages(21.0) == 0


def test_what_is_stored_and_not_retained_waits() -> None:
    figures = Figures()
    assert figures.queued_messages(0.0) is None
    batch(figures, stored(57, 5_000, 50), at=10.0)
    assert figures.queued_messages(11.0) == 7


def test_bytes_above_the_least_with_as_many_retained() -> None:
    figures = Figures()
    batch(figures, stored(50, 5_000, 50), at=10.0)
    assert figures.queued_bytes(11.0) == 0
    batch(figures, stored(54, 9_000, 50), at=20.0)
    assert figures.queued_bytes(21.0) == 4_000
    batch(figures, stored(55, 20_000, 55), at=30.0)  # a larger model is retained now, and nobody waits
    assert figures.queued_bytes(31.0) == 0


@given(st.lists(st.tuples(st.text(max_size=30), st.binary(max_size=30)), max_size=30))
def test_whatever_a_broker_says(said: list[tuple[str, bytes]]) -> None:
    figures = Figures()
    for number, (rest, payload) in enumerate(said):
        figures.heard(f"$SYS/{rest}", payload, now=number / 10)
    assert all(name.isascii() for name in figures.at(100.0))
    assert (figures.queued_messages(100.0) or 0) >= 0
