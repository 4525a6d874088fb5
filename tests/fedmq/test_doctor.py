"""`fedmq agent doctor` as it is run on a device: what it prints, its exit code, and whom it leaves in peace."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import fedmq_edge_agent
from fedmq_broker.runner import RunningBroker
from tests.fedmq.command_line import CommandLine

DEVICE = """
[federation]
name = "home"

[broker]
url = "{url}"

[device]
id = "kitchen"
task = "fedmq.tasks.iris"
state_dir = "state"
{more}
"""


def written(folder: Path, *, url: str = "mqtt://127.0.0.1:1", more: str = "") -> str:
    path = folder / "device.toml"
    path.write_text(DEVICE.format(url=url, more=more))
    return str(path)


def levels(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {one["name"]: one["level"] for one in json.loads(result.stdout)["findings"]}


def test_a_device_that_cannot_reach_its_broker(fedmq: CommandLine, tmp_path: Path) -> None:
    result = fedmq.run("agent", "doctor", "--config", written(tmp_path), "--without-torch")
    assert result.returncode == 1
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "kitchen, in the federation home, at mqtt://127.0.0.1:1"
    assert max(map(len, lines)) <= 80 + len(str(tmp_path))  # a path is not broken
    assert any(line.startswith("failed   route") for line in lines)
    assert any(line.lstrip().startswith("mend:") for line in lines)
    assert lines[-1].startswith("failed: route")
    assert not (tmp_path / "state").exists()


def test_for_programs(fedmq: CommandLine, tmp_path: Path, mosquitto: RunningBroker) -> None:
    path = written(tmp_path, url=mosquitto.url)
    result = fedmq.run("agent", "doctor", "--config", path, "--json", "--without-torch")
    told = json.loads(result.stdout)
    assert result.returncode == 3, result.stdout  # no coordinator
    assert (told["verdict"], told["device"], told["federation"]) == ("warning", "kitchen", "home")
    assert {"name", "level", "found", "mend", "took_s"} == set(told["findings"][0])
    found = levels(result)
    assert found["connection"] == "ok"
    assert found["coordinator"] == "warning"
    assert "torch" not in found
    assert sum(one["took_s"] for one in told["findings"]) < 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no file"),
        ("[device\n", "is not TOML"),
        ("\0\1\2", "is not TOML"),
        ('[device]\nid = "kitchen"\n', "a device needs its task"),
        ('[device]\nidd = "kitchen"\n', "did you mean 'id'"),
        ('[devices]\nid = "kitchen"\n', "did you mean 'device'"),
        ('[device]\nid = "Kitchen table"\ntask = "t.py"\n', "id"),
        ('[broker]\nurl = "http://x"\n[device]\nid = "a"\ntask = "t.py"\n', "mqtts://"),
        ('[device]\nid = "a"\ntask = "t.py"\ncoordinator_key = "abc"\n', "64 hex digits"),
        ('[device]\nid = "a"\ntask = "t.py"\noutbox_limit = "many"\n', "outbox_limit"),
        ('[device]\nid = "a"\ntask = "t.py"\n[device.conditions]\nhours = ["25:00-3"]\n', "hours"),
    ],
)
def test_nonsense_in_the_configuration_is_a_finding(
    fedmq: CommandLine, tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "device.toml"
    if text is not None:
        path.write_text(text)
    result = fedmq.run("agent", "doctor", "--config", str(path), "--json")
    assert result.returncode == 1
    told: dict[str, Any] = json.loads(result.stdout)["findings"][0]
    assert (told["name"], told["level"]) == ("configuration", "failed")
    assert words in told["found"] + told["mend"]
    assert told["mend"]
    assert set(levels(result).values()) == {"failed", "skipped"}


def test_a_running_agent_is_left_in_peace(
    fedmq: CommandLine, tmp_path: Path, mosquitto: RunningBroker
) -> None:
    path = written(tmp_path, url=mosquitto.url)
    runtime = tmp_path / "runtime"  # there the status is written more often
    runtime.mkdir()
    fedmq.environment["RUNTIME_DIRECTORY"] = str(runtime)
    agent = fedmq.start("agent", "start", "--config", path)
    try:
        assert agent.stderr is not None
        for line in agent.stderr:
            if "connected to the broker" in line:
                break
        status = tmp_path / "state" / "status.json"
        while not status.exists() or not json.loads(status.read_text())["connected"]:
            assert agent.poll() is None
            time.sleep(0.05)
        result = fedmq.run("agent", "doctor", "--config", path, "--json", "--without-torch")
        found = {one["name"]: one for one in json.loads(result.stdout)["findings"]}
        assert "it runs" in found["agent"]["found"]
        assert found["connection"]["level"] == "skipped"
        assert "it is connected" in found["connection"]["found"]
        assert found["route"]["level"] == "ok"
        assert agent.poll() is None
    finally:
        agent.terminate()
        rest = agent.communicate(timeout=60)[1]
    assert "another client" not in rest
    assert "trying again" not in rest


def test_root_goes_on_as_the_agents_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("changing users takes root")
    if not all(_is_open(Path(place)) for place in (__file__, sys.prefix, fedmq_edge_agent.__file__)):
        pytest.skip("another user could not read this checkout")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        _examine_as_root(CommandLine(Path(folder)), Path(folder))


def _is_open(place: Path) -> bool:
    """Whether everybody may go there."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in place.resolve().parents)


def _examine_as_root(fedmq: CommandLine, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 65_534, 65_534)
    key = tmp_path / "key.pem"
    key.write_text("")
    key.chmod(0o600)  # root's alone
    url = f'mqtts://127.0.0.1:1"\ncert_file = "{key}"\nkey_file = "{key}'
    path = written(tmp_path, url=url)
    result = fedmq.run("agent", "doctor", "--config", path, "--json", "--without-torch")
    found = {one["name"]: one for one in json.loads(result.stdout)["findings"]}
    assert "going on as nobody" in found["configuration"]["found"]
    assert found["state"]["level"] == "ok"
    assert "may not be read by this user" in found["certificate"]["found"]


def test_nothing_large_is_imported(fedmq: CommandLine, tmp_path: Path) -> None:
    code = f"""
import sys
from fedmq.cli import run
try:
    run(["agent", "doctor", "--config", {written(tmp_path)!r}, "--json"])
except SystemExit:
    pass
large = {{"torch", "numpy", "rich", "fedmq_broker", "fedmq_coordinator"}} & set(sys.modules)
sys.exit(f"imported {{large}}" if large else 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env=fedmq.environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
