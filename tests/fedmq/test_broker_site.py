"""`fedmq broker init|start|status|reload|stop` with one file, as an operator types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.cli import run
from fedmq_broker.probe import find_free_port
from fedmq_broker.running import running_pid
from fedmq_broker.service import stop
from fedmq_broker.site import Site
from tests.broker_fixtures import require_mosquitto

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def toml(tmp_path: Path) -> Iterator[Path]:
    require_mosquitto()
    path = tmp_path / "fed.toml"
    ports = [find_free_port("127.0.0.1") for _ in range(3)]
    path.write_text(
        '[federation]\nname = "home"\n[mosquitto]\nhosts = ["localhost"]\ndevices = 20\nlisten = "127.0.0.1"\n'
        f"port = {ports[0]}\nwebsockets_port = {ports[1]}\npassword_port = {ports[2]}\n"
    )
    yield path
    stop(Site(tmp_path / "site"))


def test_a_site_from_nothing_to_its_end(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(toml)]
    site = Site(toml.parent / "site")

    def said(*arguments: str, code: int = 0) -> str:
        assert run(["broker", *arguments, *config]) == code
        return capsys.readouterr().out

    assert f"fedmq broker start {' '.join(config)}" in said("init")
    assert "nothing to do" in said("init")
    status = said("status", code=3)
    assert "does not run" in status
    assert "no broker at localhost" in status

    assert "it runs as process" in said("start", "--detach")
    pid = running_pid(site)
    assert pid is not None
    told = json.loads(said("status", "--json"))
    assert told["answers"]
    assert told["pid"] == pid
    assert told["troubles"] == []
    assert f"process {pid}" in said("status")

    toml.write_text(toml.read_text().replace("devices = 20", "devices = 4000"))
    reloaded = said("reload")
    assert "changed settings" in reloaded
    assert "from its next start only: max_connections" in reloaded
    assert "it has read its files again" in reloaded
    key = site.mosquitto.key.read_bytes()
    assert "a certificate of the broker, for localhost" in said("renew")
    assert site.mosquitto.key.read_bytes() != key
    assert json.loads(said("status", "--json"))["answers"]
    assert running_pid(site) == pid

    assert said("stop") == "stopped\n"
    assert running_pid(site) is None
    assert "does not run on this machine" in said("stop")


def test_in_the_foreground_it_ends_with_ctrl_c_and_takes_hangups(toml: Path) -> None:
    assert run(["broker", "init", "--config", str(toml)]) == 0
    with subprocess.Popen(
        [sys.executable, "-m", "fedmq", "broker", "start", "--config", str(toml)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "(certificates)" in process.stdout.readline()
        assert "Ctrl-C" in process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        pid = running_pid(Site(toml.parent / "site"))
        assert pid is not None
        os.kill(pid, 0)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read() == "stopping\n"
        assert process.stderr.read() == ""
    assert running_pid(Site(toml.parent / "site")) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["start", "--port", "1883"], "--port is for trying out, and the file has a [mosquitto] table"),
        (["start"], "was never set up: fedmq broker init"),
        (["reload"], "it does not run on this machine"),
    ],
)
def test_what_cannot_be_done_says_why(
    toml: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["broker", *arguments, "--config", str(toml)]) == 1
    assert says in capsys.readouterr().err


def test_a_file_without_a_table_is_for_trying_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fed.toml"
    path.write_text("[federation]\n")
    assert run(["broker", "start", "--detach", "--config", str(path)]) == 1
    assert "--detach needs a [mosquitto] table" in capsys.readouterr().err
    assert run(["broker", "init", "--config", str(path)]) == 1
    assert "[mosquitto] hosts is missing" in capsys.readouterr().err


def test_another_federations_site_is_not_taken_over(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["broker", "init", "--config", str(toml)]) == 0
    toml.write_text(toml.read_text().replace('"home"', '"work"'))
    assert run(["broker", "init", "--config", str(toml)]) == 1
    assert "is the authority of home, not of work" in capsys.readouterr().err
