"""Lines take the time that their bandwidth, latency and loss say, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.simulation.fleet.dropout import parse_dropout
from fedmq.simulation.fleet.links import PRESETS, Line, Lines, draw_lines, parse_link
from fedmq.simulation.world import World
from fedmq_protocol.errors import UsageError

TOPIC, PAYLOAD = "t" * 42, bytes(950)  # with 8 bytes of frame: 1,000


def lines(line: Line, extra: int = 0) -> Lines:
    return Lines(World(0), {"a": line}, extra_bytes=lambda _topic, _payload: extra)


def test_a_packet_takes_its_bytes_over_the_bandwidth_and_waits_behind_others() -> None:
    network = lines(Line(8_000.0, 80_000.0, 0.5, 0.0))
    assert network.fate("a", "up", TOPIC, PAYLOAD).delay_s == pytest.approx(1.5)
    assert network.fate("a", "up", TOPIC, PAYLOAD).delay_s == pytest.approx(2.5)
    assert network.fate("a", "down", TOPIC, PAYLOAD).delay_s == pytest.approx(0.6)
    assert (network.up_bytes, network.down_bytes) == (2_000, 1_000)
    assert (network.lines["a"].up_bytes, network.lines["a"].down_bytes) == (2_000, 1_000)


def test_what_a_stand_in_lacks_is_counted() -> None:
    network = lines(Line(8_000.0, 8_000.0, 0.0, 0.0), extra=9_000)
    assert network.fate("a", "up", TOPIC, PAYLOAD).delay_s == pytest.approx(10.0)


def test_the_coordinator_sits_beside_the_broker_and_is_not_counted() -> None:
    network = lines(Line(1.0, 1.0, 9.0, 0.5))
    assert network.fate("coordinator", "up", TOPIC, PAYLOAD).delay_s < 0.01
    assert network.up_bytes == 0


def test_loss_costs_a_time_out_a_lost_segment() -> None:
    network = lines(Line(1e12, 1e12, 0.1, 0.2))
    delays = [network.fate("a", "up", TOPIC, PAYLOAD).delay_s for _ in range(20_000)]
    # one segment: lost k times with chance p^k (1 - p), each time 0.2 s and a round trip of 0.2 s
    assert np.mean(delays) == pytest.approx(0.1 + 0.4 * 0.2 / 0.8, rel=0.03)
    assert network.fate("a", "up", TOPIC, PAYLOAD).loss == ""


@pytest.mark.parametrize("text", [*PRESETS, "0.3*nbiot", "up=1Mbit down=5Mbit latency=uniform(1ms,9ms)"])
def test_kinds(text: str) -> None:
    kind = parse_link(text)
    assert kind.up.mean > 0
    assert 0 <= kind.loss < 0.1
    assert kind.weight == (0.3 if text.startswith("0.3") else 1.0)


@pytest.mark.parametrize(
    "text", ["", "wlan", "0*wifi", "up=1 down=2", "up=1 down=1 latency=0 loss=1", "up=1 up=2"]
)
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(UsageError):
        parse_link(text)


def test_kinds_are_drawn_by_weight() -> None:
    kinds = [parse_link("3*up=1 down=1 latency=0"), parse_link("1*up=2 down=2 latency=0")]
    drawn = draw_lines(kinds, [str(number) for number in range(4_000)], np.random.default_rng(0))
    assert sum(line.up_bps == 1 for line in drawn.values()) == pytest.approx(3_000, rel=0.05)


def test_dropouts() -> None:
    assert parse_dropout("none").up is None
    both = parse_dropout("up=2h down=10min training=0.1")
    assert both.up is not None
    assert (both.up.mean, both.down.mean, both.training) == (7_200.0, 600.0, 0.1)
    assert both.up.parts[0].family == "exponential"
    fixed = parse_dropout("training=0.05 down=constant(60)")
    assert fixed.down.parts[0].family == "constant"
    for text in ("up", "up=0", "training=1", "sometimes", "up=1 up=2"):
        with pytest.raises(UsageError):
            parse_dropout(text)
