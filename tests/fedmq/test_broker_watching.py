"""`fedmq broker monitor` and `exporter` as their users run them: in a terminal, in a pipe, beside what is not there."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmq.looking import exporter_of
from fedmq.watching import Watched, Watching
from fedmq_broker.runner import RunningBroker
from fedmq_broker.site import Site
from fedmq_broker.watching.metrics import names
from fedmq_broker.watching.picture import Picture
from fedmq_protocol.broker_settings import BrokerSettings
from tests.fedmq.command_line import CommandLine

NOWHERE = "mqtt://127.0.0.1:9"


def test_who_is_away_is_said_and_the_exit_code_tells(fedmq: CommandLine) -> None:
    done = fedmq.run("broker", "monitor", "--broker", NOWHERE, "--state-dir", "none", "--once")
    assert done.returncode == 1
    assert "AWAY" in done.stdout
    assert "no coordinator is running on none" in done.stdout
    assert done.stderr == ""


@pytest.mark.mosquitto
def test_one_picture_for_programs(fedmq: CommandLine, mosquitto: RunningBroker) -> None:
    done = fedmq.run("broker", "monitor", "--broker", mosquitto.url, "--once", "--json")
    picture = Picture.model_validate_json(done.stdout)
    assert picture.broker.up
    assert picture.broker.version.startswith("mosquitto version")
    assert not picture.coordinator.up
    assert done.returncode == 1  # the coordinator is away


class Terminal:
    """A command in a pseudo-terminal of 24 lines of 80 columns."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(theirs)
        variables = {name: value for name, value in environment.items() if name != "COLUMNS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedmq", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder,
            env={**variables, "TERM": "xterm-256color"}, start_new_session=True,
        )  # fmt: skip
        self.theirs = theirs
        self.seen = ""

    def read_until(self, text: str, *, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.seen!r}"
            if select.select([self.ours], [], [], 0.2)[0]:
                self.seen += os.read(self.ours, 65_536).decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(60)
        os.close(self.ours)
        os.close(self.theirs)


@pytest.mark.mosquitto
def test_in_a_terminal_it_goes_on_without_the_broker_and_leaves_no_trace(
    fedmq: CommandLine, start: Callable[..., RunningBroker], tmp_path: Path
) -> None:
    broker = start("mosquitto")
    arguments = ["broker", "monitor", "--broker", broker.url, "--state-dir", "none"]
    terminal = Terminal(arguments, fedmq.environment, tmp_path)
    try:
        terminal.read_until(" ms")
        assert "\x1b[?1049h" in terminal.seen  # the other screen
        broker.stop()
        terminal.read_until("AWAY")
        terminal.seen = ""
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("\x1b[?1049l")  # and back
        assert terminal.process.wait(60) == 0
        assert "\x1b[?25h" in terminal.seen  # the cursor is there again
        assert "Traceback" not in terminal.seen
        assert termios.tcgetattr(terminal.theirs) == terminal.before
    finally:
        terminal.close()


@pytest.mark.mosquitto
def test_prometheus_is_served_and_the_log_is_for_programs(
    fedmq: CommandLine, mosquitto: RunningBroker
) -> None:
    process = fedmq.start(
        "broker", "exporter", "--broker", mosquitto.url, "--listen", "127.0.0.1:0", "--log-format", "json",
        "--mosquitto-conf", str(mosquitto.log_path.with_name("mosquitto.conf")),
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(json.loads(line))
        if "connected to the broker" in lines[-1]["message"]:
            break
    found = re.search(r"http://\S+/metrics", " ".join(line["message"] for line in lines))
    assert found is not None
    deadline, scraped = time.monotonic() + 60, ""
    while "broker_uptime" not in scraped:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        scraped = urllib.request.urlopen(found[0], timeout=30).read().decode()
    assert "fedmq_broker_up 1\n" in scraped
    assert "fedmq_broker_limit_queued_messages 5000\n" in scraped
    assert {"broker_publish_messages_dropped", "fedmq_coordinator_up"} <= names(scraped.splitlines())
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert json.loads(rest.splitlines()[-1])["message"] == "stopped"


def test_an_exporter_that_is_no_more_is_not_asked(tmp_path: Path) -> None:
    watched = Watched("home", BrokerSettings(), tmp_path, Site(tmp_path))
    place = tmp_path / "exporter.json"
    assert exporter_of(watched) is None
    place.write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": os.getpid()}))
    assert exporter_of(watched) == "http://127.0.0.1:1"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    place.write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": gone.pid}))
    assert exporter_of(watched) is None
    place.write_text("nonsense")
    assert exporter_of(watched) is None


@pytest.mark.parametrize("listen", ["9234", "host:port", ":", "", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(fedmq: CommandLine, listen: str) -> None:
    done = fedmq.run("broker", "exporter", "--listen", listen)
    assert done.returncode == 1
    assert "--listen" in done.stderr


@pytest.mark.mosquitto
def test_a_site_that_is_another_users_is_watched_all_the_same(fedmq: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "fed.toml").write_text(
        '[federation]\nname = "home"\n[mosquitto]\nhosts = ["localhost"]\ndevices = 5\nparameters = 1000\n'
    )
    assert fedmq.run("broker", "init", "--config", "fed.toml").returncode == 0
    (tmp_path / "site" / "exporter.json").mkdir()  # nobody can write such a file
    process = fedmq.start("broker", "exporter", "--config", "fed.toml", "--listen", "127.0.0.1:0")
    assert process.stderr is not None
    for line in process.stderr:
        if "will not find this exporter" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0, rest
    assert rest.splitlines()[-1].endswith("stopped")


async def test_a_coordinator_that_is_not_understood_ends_no_watching(tmp_path: Path) -> None:
    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(tell, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        (tmp_path / "api.json").write_text(json.dumps({"url": url, "pid": os.getpid()}))
        (tmp_path / "api-token").write_text("x")
        watching = Watching(Watched("home", BrokerSettings(url=NOWHERE), tmp_path))
        task = asyncio.create_task(watching.run())
        await watching.settled(60)
        picture = watching.picture()
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not picture.coordinator.up
    assert "not understood" in picture.coordinator.detail
