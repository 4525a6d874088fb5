"""Who floods the broker, from its log's lines and the kernel's counters; the counters against real connections."""

from __future__ import annotations

import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_broker.guarding.sockets import plain, received_bytes
from fedmq_broker.guarding.watching import Allowance, Watch, allowance

SMALL = Allowance(payload_bytes=1_000, bytes_per_s=100.0, connections=5)
PEER = ("10.0.0.7", 43_210)


def line(name: str, address: str = "10.0.0.7", port: int = 43_210) -> str:
    """As Mosquitto 2.0.11 writes it, on standard error or in $SYS."""
    return f"1795421087: New client connected from {address}:{port} as {name} (p5, c1, k30, u'{name}')."


def test_who_connects_too_often_floods() -> None:
    watch = Watch(SMALL)
    told = [watch.logged(line("dev-1", port=port), now=float(port)) for port in range(7)]
    assert told[:5] == [None] * 5
    assert told[5] == ("dev-1", "6 connections in 5.0 s, the last from 10.0.0.7")
    assert told[6] is None


def test_connections_long_ago_and_other_lines_count_for_nothing() -> None:
    watch = Watch(SMALL)
    assert not any(watch.logged(line("dev-1"), now=20.0 * n) for n in range(100))
    assert not any(watch.logged(line("@coordinator"), now=float(n)) for n in range(100))
    for text in (
        "",
        "Client dev-1 disconnected.",
        "New connection from 10.0.0.7:1 on port 8883.",
        "\x00" * 50,
    ):
        assert watch.logged(text, now=0.0) is None


@pytest.mark.parametrize(("address", "same"), [("::ffff:10.0.0.7", "10.0.0.7"), ("::1", "0:0::1")])
def test_an_address_counts_however_it_is_written(address: str, same: str) -> None:
    watch = Watch(SMALL)
    watch.logged(line("dev-1", address), now=0.0)
    assert [name for name, _ in watch.counted({(plain(same), 43_210): 5_000}, now=0.0)] == ["dev-1"]


EIGHTHS = st.integers(1, 40).map(lambda eighths: eighths / 8)
"""Seconds whose sums are exact: else who is at the brink in one reckoning is beyond it in the other."""


@given(st.lists(st.tuples(EIGHTHS, st.integers(0, 600)), min_size=1, max_size=80))
def test_bytes_are_a_flood_beyond_the_bucket_alone(steps: list[tuple[float, int]]) -> None:
    """Against a bucket of its own, filled and emptied step by step."""
    watch, now, total, tokens = Watch(SMALL), 0.0, 0, 1_000.0
    watch.logged(line("dev-1"), now=0.0)
    for wait, size in steps:
        now, total = now + wait, total + size
        tokens = min(1_000.0, tokens + wait * 100.0) - size
        told = watch.counted({PEER: total}, now=now)
        assert bool(told) == (tokens < 0)
        tokens = 1_000.0 if tokens < 0 else tokens


def test_all_connections_of_a_member_add_up() -> None:
    watch = Watch(SMALL)
    counts = {}
    for port in range(3):
        watch.logged(line("dev-1", port=port), now=0.0)
        counts["10.0.0.7", port] = 400
    assert [name for name, _ in watch.counted(counts, now=0.0)] == ["dev-1"]


def test_a_port_that_is_used_again_is_another_connections() -> None:
    watch = Watch(SMALL)
    watch.logged(line("dev-1"), now=0.0)
    assert not watch.counted({PEER: 900}, now=0.0)
    assert not watch.counted({}, now=1.0)
    assert not watch.counted({PEER: 90_000}, now=2.0)  # whose that is, no line has told
    watch.logged(line("dev-2"), now=3.0)
    assert [name for name, _ in watch.counted({PEER: 90_000}, now=4.0)] == ["dev-2"]


def test_a_device_may_send_its_largest_updates() -> None:
    """300,000 parameters as float32, four at once, then one every ten seconds for an hour."""
    watch, now, total = Watch(allowance(300_000)), 0.0, 4 * 1_210_000
    watch.logged(line("dev-1"), now=0.0)
    assert not watch.counted({PEER: total}, now=now)
    for _ in range(360):
        now, total = now + 10.0, total + 1_210_000
        assert not watch.counted({PEER: total}, now=now)


def test_who_holds_too_many_subscriptions_is_found_by_trying() -> None:
    """The first suspect said most; the second has them."""
    watch = Watch(Allowance(payload_bytes=10**9, bytes_per_s=1.0))
    for number, name in enumerate(["loud", "guilty", "quiet"]):
        watch.logged(line(name, port=number), now=0.0)
    said = {("10.0.0.7", 0): 9_000, ("10.0.0.7", 1): 5_000, ("10.0.0.7", 2): 10}
    assert watch.subscribed(1_100) == (None, None, "")
    watch.counted(said, now=1.0)
    suspected, acquitted, why = watch.subscribed(500_000)
    assert (suspected, acquitted) == ("loud", None)
    assert why.startswith("500,000 subscriptions")
    assert watch.subscribed(900_000)[:2] == ("guilty", "loud")
    assert watch.subscribed(50) == (None, None, "")
    assert watch.subscribed(60) == (None, None, "")


def test_a_fleet_of_many_may_subscribe_as_many_times() -> None:
    watch = Watch(Allowance(payload_bytes=10**9, bytes_per_s=1.0))
    for number in range(2_000):
        watch.logged(line(f"dev-{number}", port=number), now=0.0)
    assert watch.subscribed(2_000 * 7) == (None, None, "")


def test_a_fleet_that_was_there_before_the_watch_is_no_flood() -> None:
    """Its connections stand in no line that was heard; the first that comes anew must not pay for all of them."""
    watch = Watch(Allowance(payload_bytes=10**9, bytes_per_s=1.0))
    watch.logged(line("dev-1"), now=0.0)
    watch.counted({("10.0.0.7", 43_210 + number): 5_000 for number in range(2_000)}, now=1.0)
    assert watch.subscribed(2_000 * 7) == (None, None, "")


def test_where_no_bytes_are_counted_nobody_is_suspected() -> None:
    watch = Watch(SMALL)
    watch.logged(line("dev-1"), now=0.0)
    assert watch.subscribed(500_000)[:2] == (None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counters are read on Linux alone")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_kernel_counts_what_came_in(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"no {address} here")
    port = server.getsockname()[1]
    with (
        server,
        socket.create_connection((address, port)) as one,
        socket.create_connection((address, port)) as two,
    ):
        first, second = server.accept()[0], server.accept()[0]
        with first, second:
            one.sendall(b"x" * 12_345)
            two.sendall(b"x")
            got = 0
            while got < 12_345:
                got += len(first.recv(65_536))
            second.recv(1)
            found = received_bytes(frozenset({port}))
            assert found == {(address, one.getsockname()[1]): 12_345, (address, two.getsockname()[1]): 1}
    assert received_bytes(frozenset({port})) == {}
