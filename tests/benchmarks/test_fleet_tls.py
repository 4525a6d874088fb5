"""Fifty light agents over mutual TLS on a site's own Mosquitto: in turns, and nothing is dropped."""

from __future__ import annotations

import argparse
import shutil

import pytest

from benchmarks import fleet_tls
from fedmq_broker.mosquitto import find_mosquitto

pytestmark = pytest.mark.skipif(
    find_mosquitto() is None or shutil.which("mosquitto_ctrl") is None,
    reason="no Mosquitto with its security plugin here",
)


def test_a_fleet_sends_in_turns_and_nothing_is_dropped() -> None:
    options = argparse.Namespace(agents=50, few=5, rounds=2, under_way=10, queued=100, json=None)
    found = fleet_tls.measure(options)
    assert found["few"]["turns"] == 0
    many = found["many"]
    assert many["dropped"] == 0
    assert many["turns"] >= 50 / 10
    # What is counted at the agents includes receipts on their way back: at most one more window.
    assert many["most_under_way"] <= 2 * 10
