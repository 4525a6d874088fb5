"""Brokers as child processes: they answer when we say so, explain when they do not, and never outlive us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from fedmq_broker.errors import BrokerStartError
from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.probe import answers_mqtt, find_free_port, port_is_free
from fedmq_broker.runner import RunningBroker, run_foreground, start_broker
from fedmq_protocol.errors import UsageError
from tests.broker_fixtures import PATIENCE_S, require_mosquitto

KINDS = [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]
Start = Callable[..., RunningBroker]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something listens that is no broker."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_when_start_returns_and_is_gone_when_stop_does(
    kind: str, start: Start, tmp_path: Path
) -> None:
    broker = start(kind, state_dir=tmp_path / "state")
    assert broker.kind == kind
    assert answers_mqtt("127.0.0.1", broker.port, timeout_s=PATIENCE_S)
    assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
    assert broker.wait(0) is None
    assert psutil.pid_exists(broker.pid)
    assert broker.log_path.parent == tmp_path / "state"
    broker.stop(grace_s=PATIENCE_S)
    broker.stop()
    assert not broker.is_running
    assert not psutil.pid_exists(broker.pid)
    assert port_is_free("127.0.0.1", broker.port)


def test_without_a_state_folder_nothing_is_left() -> None:
    with start_broker("embedded", port=0) as broker:
        folder = broker.log_path.parent
        assert folder.is_dir()
    assert not folder.exists()


def test_auto_prefers_mosquitto_and_does_without(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start("auto").kind == ("embedded" if find_mosquitto() is None else "mosquitto")
    monkeypatch.setattr("fedmq_broker.runner.find_mosquitto", lambda: None)
    assert start("auto").kind == "embedded"
    with pytest.raises(UsageError, match="mosquitto is not installed: apt-get install mosquitto"):
        start_broker("mosquitto", port=0)


def test_a_port_that_is_taken_is_named(start: Start, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=rf"port {taken} on 127.0.0.1 is taken by another program"):
        start_broker("embedded", port=taken)
    broker = start("embedded")
    monkeypatch.setattr("fedmq_broker.runner.answers_mqtt", partial(answers_mqtt, timeout_s=PATIENCE_S))
    with pytest.raises(
        UsageError, match=rf"taken by a broker that runs already: use that one \({broker.url}\)"
    ):
        start_broker("embedded", port=broker.port)


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 1883), ("no-such-host.invalid", 1883), ("127.0.0.1", 70_000)]
)
def test_an_address_that_is_not_ours(host: str, port: int) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on port {port} on {host}"):
        start_broker("embedded", host=host, port=port)


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"folder .* cannot be made"):
        start_broker("embedded", port=0, state_dir=tmp_path / "file" / "below")


def test_a_broker_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "mosquitto"
    broken.write_text("#!/bin/sh\necho 'the reason stands here'\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("fedmq_broker.runner.find_mosquitto", lambda: broken)
    with pytest.raises(BrokerStartError, match=r"(?s)exit code 3.*the reason stands here"):
        start_broker("mosquitto", port=find_free_port("127.0.0.1"))


def test_a_broker_that_stays_mute_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = tmp_path / "mosquitto"
    mute.write_text("#!/bin/sh\n[ $1 = -h ] || exec sleep 60\n")
    mute.chmod(0o755)
    monkeypatch.setattr("fedmq_broker.runner.find_mosquitto", lambda: mute)
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(BrokerStartError, match=r"does not answer after 0.3 s"):
        start_broker("mosquitto", port=find_free_port("127.0.0.1"), start_timeout_s=0.3)
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_that_does_not_listen_to_terminate_is_killed(kind: str, start: Start) -> None:
    broker = start(kind)
    os.kill(broker.pid, signal.SIGSTOP)
    broker.stop(grace_s=0.2)
    assert broker.wait(PATIENCE_S) == -signal.SIGKILL


PARENT = """
import sys
from fedmq_broker.runner import start_broker
broker = start_broker(sys.argv[1], port=0)
print(broker.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_broker_dies_with_its_parent(kind: str, how: signal.Signals) -> None:
    if kind == "mosquitto":
        require_mosquitto()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(how)
        psutil.wait_procs([child], timeout=PATIENCE_S)
        assert not child.is_running()


def test_starting_from_a_thread_that_ends_does_not_end_the_broker(start: Start) -> None:
    """Linux ties the signal to the thread that forked: that one must not be the caller's."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(1) as pool:
        broker = pool.submit(start, "embedded").result()
    assert answers_mqtt("127.0.0.1", broker.port, timeout_s=PATIENCE_S)
    assert broker.wait(0.1) is None


@pytest.mark.mosquitto
def test_mosquitto_keeps_what_is_retained_over_a_restart(start: Start, tmp_path: Path) -> None:
    state = tmp_path / "kept"
    first = start("mosquitto", state_dir=state)
    with socket.create_connection(("127.0.0.1", first.port)) as sock:
        sock.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a" + b"\x31\x04\x00\x01mx" + b"\xe0\x00")
        while sock.recv(100):
            pass
    first.stop(grace_s=PATIENCE_S)  # it saves before it ends
    second = start("mosquitto", state_dir=state)
    with socket.create_connection(("127.0.0.1", second.port)) as sock:
        sock.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a" + b"\x82\x06\x00\x01\x00\x01m\x00")
        received = b""
        while b"\x31\x04\x00\x01mx" not in received:
            data = sock.recv(100)
            assert data
            received += data


# ------------------------------------------------------------------------------------- in the foreground

FOREGROUND = """
import sys
from fedmq_broker.runner import run_foreground
run_foreground(sys.argv[1], port=0, host=sys.argv[2], echo=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_in_order(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, "embedded", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        assert "the embedded broker listens at mqtt://127.0.0.1:" in first
        assert "Ctrl-C" in process.stdout.readline()
        children = psutil.Process(process.pid).children()
        process.send_signal(how)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == ""
        assert psutil.wait_procs(children, timeout=PATIENCE_S)[1] == []


def test_listening_beyond_loopback_is_warned_about() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, "embedded", "0.0.0.0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert (
            "warning: 0.0.0.0 is reachable from other machines, and there is no password"
            in process.stdout.readline()
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0


def test_a_broker_that_dies_in_the_foreground_is_an_error(tmp_path: Path) -> None:
    def echo(line: str) -> None:
        if "listens at" in line:
            [child] = [one for one in psutil.Process().children() if "fedmq_broker.embedded" in one.cmdline()]
            child.kill()

    with pytest.raises(BrokerStartError, match="ended by itself"):
        run_foreground("embedded", port=0, state_dir=tmp_path, echo=echo)


# ------------------------------------------------------------------------------------- the probe


def test_the_probe_knows_a_broker_from_other_things(start: Start, taken: int) -> None:
    assert not answers_mqtt("127.0.0.1", taken, timeout_s=0.2)
    assert not answers_mqtt("127.0.0.1", find_free_port("127.0.0.1"))
    # It says so at the answer: until its time is over it would wait for more, and then say no.
    assert answers_mqtt("127.0.0.1", start("embedded").port, timeout_s=PATIENCE_S)
    assert not port_is_free("127.0.0.1", taken)
