"""The limits, against what the protocol lets a fleet do, and against what a real Mosquitto does at them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import fields

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_broker.sizing import PULL_WINDOW, Limits, plan
from fedmq_protocol.errors import UsageError
from fedmq_protocol.limits import MAX_PACKET_BYTES, MAX_PARAMETERS
from tests.broker.raw_mqtt import RawClient
from tests.broker_fixtures import CustomBroker

FLEETS = st.tuples(st.integers(1, 1_000_000), st.integers(1, MAX_PARAMETERS), st.integers(4_096, 2**28 - 1))


@given(FLEETS)
def test_every_limit_has_its_reason_and_no_limit_is_below_what_is_under_way(
    fleet: tuple[int, int, int],
) -> None:
    devices, parameters, packet = fleet
    limits = plan(devices, parameters, packet)
    assert set(limits.why) == {field.name for field in fields(Limits)} - {"why"}
    assert limits.max_queued_messages > devices
    assert limits.max_queued_bytes >= devices * packet
    assert limits.max_inflight_bytes >= 4 * packet
    assert limits.max_connections > devices
    assert limits.memory_limit > limits.max_queued_bytes + parameters
    assert limits.open_files > limits.max_connections
    assert 60 <= limits.autosave_interval <= 1_800


@given(FLEETS, st.integers(1, 3))
def test_more_devices_and_larger_models_never_make_a_limit_smaller(
    fleet: tuple[int, int, int], factor: int
) -> None:
    devices, parameters, packet = fleet
    small = plan(devices, parameters, packet)
    large = plan(min(factor * devices, 1_000_000), min(factor * parameters, MAX_PARAMETERS), packet)
    for field in fields(Limits):
        if field.type == "int":
            assert getattr(large, field.name) >= getattr(small, field.name), field.name


def test_two_hundred_devices_with_three_hundred_thousand_parameters() -> None:
    limits = plan(200, 300_000)
    assert limits.max_packet_size == MAX_PACKET_BYTES
    assert limits.max_queued_messages == 1_000 + 8 * 200
    assert limits.max_queued_bytes == 200 * 131_072
    assert limits.max_connections == 432
    assert limits.open_files == 3 * 432 + 64
    assert "200 devices" in limits.why["max_queued_messages"]
    # 3 chunks of 126 KB hold 300,000 parameters of a byte; each device may fetch them all at once.
    assert "75 MB of chunks" in limits.why["memory_limit"]
    assert "a snapshot of 299 KB in 3 chunks" in limits.why["memory_limit"]


@pytest.mark.parametrize(
    "fleet", [(0, 1, 131_072), (1, 0, 131_072), (1, 1, 2_048), (1_000_001, 1, 131_072), (1, 2**31, 131_072)]
)
def test_what_no_federation_can_have(fleet: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError):
        plan(*fleet)


# ------------------------------------------------------------------------------------- on a real Mosquitto

TOPIC = "fedmq/v1/home/dev/a/up/update"


def configuration(limits: Limits, **other: object) -> str:
    """The limits alone, on a listener without TLS."""
    names = [
        "max_packet_size",
        "max_inflight_messages",
        "max_inflight_bytes",
        "max_queued_messages",
        "max_queued_bytes",
        "memory_limit",
    ]
    lines = [f"{name} {other.get(name, getattr(limits, name))}" for name in names]
    return "\n".join(
        [
            *lines,
            "listener {port} 127.0.0.1",
            "allow_anonymous true",
            f"max_connections {limits.max_connections}",
        ]
    )


@pytest.mark.mosquitto
@pytest.mark.parametrize("size", [100, 120_000])
def test_a_whole_fleet_may_answer_while_the_coordinator_takes_nothing(
    custom_mosquitto: Callable[[str], CustomBroker], size: int
) -> None:
    """As many messages, and as many full packets, as the limits are for: all of them arrive."""
    limits = plan(100, 300_000)
    broker = custom_mosquitto(configuration(limits))
    count = limits.max_queued_messages if size == 100 else 100
    payloads = [b"%08d" % number + bytes(size) for number in range(count)]
    with RawClient(broker.port, "coordinator") as coordinator, RawClient(broker.port, "devices") as devices:
        coordinator.subscribe("fedmq/v1/home/dev/+/up/+")
        devices.publish(TOPIC, payloads)
        devices.publish(TOPIC, [b"end"])
        assert [payload[:8] for payload in coordinator.drain()] == [payload[:8] for payload in payloads]
    assert "dropped" not in broker.log_path.read_text()


@pytest.mark.mosquitto
def test_above_the_limits_mosquitto_drops_what_it_has_acknowledged(
    custom_mosquitto: Callable[[str], CustomBroker],
) -> None:
    """Why the limits are as they are: each publish below is acknowledged, and not all are delivered."""
    limits = plan(1, 1)
    broker = custom_mosquitto(configuration(limits))
    allowed = limits.max_queued_messages + limits.max_inflight_messages
    with RawClient(broker.port, "coordinator") as coordinator, RawClient(broker.port, "devices") as devices:
        coordinator.subscribe("fedmq/v1/home/dev/+/up/+")
        devices.publish(TOPIC, [b"%08d" % number for number in range(allowed + 50)])
        assert "being dropped for client coordinator" in broker.log_path.read_text()
        with RawClient(broker.port, "witness") as witness:
            witness.subscribe("fedmq/v1/home/dev/+/up/+")  # by now all that was published is queued or gone
        coordinator_has = len(coordinator_drained(coordinator, devices))
    # Mosquitto 2.0.11 holds exactly as many; 2.1.2 does not count those under way a second time.
    assert allowed <= coordinator_has <= allowed + limits.max_inflight_messages


def coordinator_drained(coordinator: RawClient, devices: RawClient) -> list[bytes]:
    """What the coordinator gets, up to a marker that is published once its queue has room again."""
    seen = [coordinator.take() for _ in range(200)]
    devices.publish(TOPIC, [b"end"])
    return seen + coordinator.drain()


@pytest.mark.mosquitto
def test_devices_that_fetch_and_stall_cost_no_more_memory_than_is_reckoned_with(
    custom_mosquitto: Callable[[str], CustomBroker],
) -> None:
    """Each asks for a window of chunks and reads nothing: copies for each, up to the kernel's buffers."""
    devices, limits = 40, plan(40, 1_000_000)
    broker = custom_mosquitto(configuration(limits))
    process = psutil.Process(broker.pid)
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(RawClient(broker.port, "coordinator"))
        for chunk in range(8):
            coordinator.publish(f"model/s{chunk}", [bytes(limits.max_packet_size - 2_048)], retain=True)
        before = process.memory_info().rss
        for number in range(devices):
            device = stack.enter_context(RawClient(broker.port, f"dev-{number}"))
            for chunk in range(PULL_WINDOW):
                device.request(f"model/s{chunk}")
        coordinator.publish("model/end", [b"end"])  # by now all that was asked for is on its way
        grown = process.memory_info().rss - before
    assert grown < devices * PULL_WINDOW * limits.max_packet_size * 1.25


@pytest.mark.mosquitto
def test_a_packet_above_the_limit_is_cut_off(custom_mosquitto: Callable[[str], CustomBroker]) -> None:
    limits = plan(10, 300_000)
    broker = custom_mosquitto(configuration(limits))
    with RawClient(broker.port, "giant") as giant, RawClient(broker.port, "honest") as honest:
        honest.publish(TOPIC, [bytes(limits.max_packet_size - 64)])
        giant.send_bytes(
            b"\x32\x81\x80\x08"
        )  # a length of 131,073 and no body: refused before any of it came
        assert giant.is_cut_off()
        honest.publish(TOPIC, [b"still here"])


@pytest.mark.mosquitto
def test_at_the_memory_limit_clients_go_and_the_broker_stays(
    custom_mosquitto: Callable[[str], CustomBroker],
) -> None:
    limits = plan(100, 300_000)
    broker = custom_mosquitto(configuration(limits, memory_limit=4_000_000))
    with RawClient(broker.port, "coordinator") as coordinator:
        coordinator.subscribe("fedmq/v1/home/dev/+/up/+")
        with RawClient(broker.port, "devices") as devices, pytest.raises((ConnectionError, TimeoutError)):
            devices.publish(TOPIC, [bytes(120_000)] * 100)
    with RawClient(broker.port, "later") as later, RawClient(broker.port, "other") as other:
        later.subscribe("fedmq/v1/home/x")
        other.publish("fedmq/v1/home/x", [b"1", b"end"])
        assert later.drain() == [b"1"]
