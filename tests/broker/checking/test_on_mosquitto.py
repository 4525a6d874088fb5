"""What the rules say that Mosquitto does, it does: each bad setting is run, and seen to lose, refuse or admit."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmq_broker.checking import check
from fedmq_broker.mosquitto import mosquitto_version
from fedmq_broker.probe import find_free_port
from fedmq_broker.sizing import plan
from tests.broker.raw_mqtt import RawClient
from tests.broker_fixtures import CustomBroker, require_mosquitto

pytestmark = pytest.mark.mosquitto
OPEN = "listener {port} 127.0.0.1\nallow_anonymous true\n"
TOPIC = "fedmq/v1/home/dev/a/up/update"


def sent_and_delivered(port: int, payloads: list[bytes]) -> list[bytes]:
    """Publish, each acknowledged, to a reader that reads only afterwards; what it gets."""
    with RawClient(port, "reader") as reader, RawClient(port, "writer") as writer:
        reader.subscribe(TOPIC)
        writer.publish(TOPIC, payloads)
        first = reader.take()
        reader.say(TOPIC, b"end")  # behind its acknowledgement, which has made room in the queue
        return [first, *reader.drain()]


def test_message_size_limit_acknowledges_and_loses(custom_mosquitto: Callable[[str], CustomBroker]) -> None:
    broker = custom_mosquitto(OPEN + "message_size_limit 1000")
    small, large = bytes(10), bytes(2_000)
    assert sent_and_delivered(broker.port, [small, large, small]) == [small, small]


def test_a_short_queue_in_bytes_loses(custom_mosquitto: Callable[[str], CustomBroker]) -> None:
    broker = custom_mosquitto(OPEN + "max_queued_bytes 100000\nmax_inflight_bytes 10000")
    assert len(sent_and_delivered(broker.port, [bytes(1_000)] * 300)) < 150


def test_the_default_queue_loses(custom_mosquitto: Callable[[str], CustomBroker]) -> None:
    broker = custom_mosquitto(OPEN)
    got = len(sent_and_delivered(broker.port, [b"%08d" % number for number in range(1_500)]))
    assert 1_000 <= got <= 1_100


def test_quality_of_service_0_refuses_what_fedmq_sends(
    custom_mosquitto: Callable[[str], CustomBroker],
) -> None:
    broker = custom_mosquitto(OPEN + "max_qos 0")
    with RawClient(broker.port, "a") as client, pytest.raises(ConnectionError):
        client.publish(TOPIC, [b"x"])


def test_a_mount_point_sets_its_clients_apart(custom_mosquitto: Callable[[str], CustomBroker]) -> None:
    broker = custom_mosquitto(OPEN + "mount_point tenant/\nlistener {other_port} 127.0.0.1\n")
    with (
        RawClient(broker.port, "a") as reader,
        RawClient(broker.port, "b") as inside,
        RawClient(broker.other_port, "c") as outside,
    ):
        reader.subscribe(TOPIC)
        outside.publish(TOPIC, [b"unheard"])
        inside.publish(TOPIC, [b"heard", b"end"])
        assert reader.drain() == [b"heard"]


def test_an_option_above_every_listener_opens_a_port_to_everybody(tmp_path: Path) -> None:
    """That listener is given a certificate that is not there, so that Mosquitto does not live on."""
    port = find_free_port("127.0.0.1")
    said = started(tmp_path, f"certfile absent.pem\nkeyfile absent.key\nlistener {port} 127.0.0.1\n")
    assert "Opening ipv4 listen socket on port 1883" in said
    assert "before-any-listener" in rules_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "rule", "says"),  # in the words of 2.0 or of 2.1
    [
        ("max_que_messages 3", "unknown-option", "Unknown configuration variable"),
        ("persistence yes", "not-a-flag", "Invalid '?persistence'? value"),
        ("pid_file a.pid\npid_file b.pid", "twice", "Duplicate '?pid_file'? value"),
        ("address example.org", "outside-a-bridge", "Invalid bridge configuration|requires a bridge"),
        ("plugin_opt_x y", "outside-a-plugin", "without an auth_plugin|requires plugin"),
        ("log_type everything", "unknown-word", "Invalid '?log_type'? value"),
        ("include_dir absent", "unreadable", "Unable to open include_dir"),
        ("pid_file", "no-value", "Empty '?pid_file'? value"),
    ],
)
def test_what_keeps_it_from_starting(tmp_path: Path, text: str, rule: str, says: str) -> None:
    assert re.search(says, started(tmp_path, text))
    assert rule in rules_of(tmp_path)


def test_a_number_with_a_unit_is_its_digits_or_refused(
    custom_mosquitto: Callable[[str], CustomBroker], tmp_path: Path
) -> None:
    if mosquitto_version(require_mosquitto()) >= (2, 1):
        assert "not a number" in started(tmp_path, "max_packet_size 100KB")
        return
    broker = custom_mosquitto(OPEN + "max_packet_size 100KB")
    with RawClient(broker.port, "a") as client, pytest.raises(ConnectionError):
        client.publish(TOPIC, [bytes(200)])


def started(folder: Path, text: str) -> str:
    """What Mosquitto says of a configuration that it does not start with."""
    program = require_mosquitto()
    path = folder / "mosquitto.conf"
    path.write_text(f"{text}\n" if "user" in text else f"{text}\nuser {getpass.getuser()}\n")
    run = subprocess.run(
        [program, "-c", path], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )
    assert run.returncode != 0
    return run.stdout + run.stderr


def rules_of(folder: Path) -> set[str]:
    return {
        one.rule for one in check(folder / "mosquitto.conf", devices=1, limits=plan(1, 1), version=(2, 0, 11))
    }
