"""The agent in JavaScript: the vectors, and a run over TCP and WebSockets in which it is killed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from fedmq_broker.probe import find_free_port
from tests.broker_fixtures import CustomBroker
from tests.fedmq.command_line import CommandLine

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "js-agent"
DIGITS = ROOT / "examples" / "digits" / "digits.py"
NODE = shutil.which("node")
ROUNDS = 12

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(not (FOLDER / "node_modules").is_dir(), reason="run `npm ci` in examples/js-agent"),
]

Agent: TypeAlias = "subprocess.Popen[str]"


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[Callable[[str, int, str], Agent]]:
    """Agents on demand, by id, partition of the digits and broker; they end with the test."""
    running: list[Agent] = []

    def start_one(device: str, partition: int, broker: str) -> Agent:
        data = tmp_path / f"digits-{partition}.json"
        if not data.exists():
            cut = ["--partition", str(partition), "--of", "2", "--out", str(data)]
            subprocess.run([sys.executable, str(FOLDER / "export.py"), str(DIGITS), *cut], check=True)
        assert NODE is not None
        arguments = ["--broker", broker, "--federation", "home", "--id", device, "--data", str(data)]
        agent = subprocess.Popen(
            [NODE, str(FOLDER / "agent.mjs"), *arguments, "--state", str(tmp_path / device)],
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(agent)
        return agent

    yield start_one
    for agent in running:
        end(agent)


def end(agent: Agent) -> list[str]:
    """Kill an agent; what it had said till then."""
    assert agent.stdout is not None
    agent.kill()
    agent.wait(60)
    rest = [] if agent.stdout.closed else agent.stdout.readlines()
    agent.stdout.close()
    return rest


def read_until(agent: Agent, word: str, said: list[str]) -> None:
    """Read what an agent says, into `said`, up to a line with this in it."""
    assert agent.stdout is not None
    for line in agent.stdout:
        said.append(line)
        if word in line:
            return
    raise AssertionError(f"{word!r} did not come: {said}")


def accepted(said: list[str]) -> list[int]:
    """The counters of updates for which an agent had its receipt."""
    lines = [line for line in said if '"outcome":"accepted"' in line]
    return [int(match[1]) for line in lines if (match := re.search(r'"counter":(\d+)', line))]


def test_its_own_tests_pass() -> None:
    assert NODE is not None
    tests = [str(path) for path in sorted((FOLDER / "test").glob("*.test.js"))]
    result = subprocess.run([NODE, "--test", *tests], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "# fail 0" in result.stdout


def test_it_agrees_with_every_vector() -> None:
    assert NODE is not None
    runner = [sys.executable, str(ROOT / "protocol" / "vectors" / "run.py"), "--"]
    result = subprocess.run(
        [*runner, NODE, str(FOLDER / "vectors.mjs"), "--answer"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    alone = subprocess.run([NODE, FOLDER / "vectors.mjs"], capture_output=True, text=True, check=False)
    assert alone.returncode == 0, alone.stdout


@pytest.mark.timeout(600)
def test_it_improves_a_model_over_tcp_and_websockets_and_survives_a_kill(
    fedmq: CommandLine,
    custom_mosquitto: Callable[[str], CustomBroker],
    start_agent: Callable[[str, int, str], Agent],
) -> None:
    ws_port = find_free_port("127.0.0.1")
    broker = custom_mosquitto(
        f"listener {{port}} 127.0.0.1\nlistener {ws_port} 127.0.0.1\nprotocol websockets\nallow_anonymous true"
    )
    url = f"mqtt://127.0.0.1:{broker.port}"
    (fedmq.folder / "fed.toml").write_text(
        f'[federation]\nname = "home"\n[broker]\nurl = "{url}"\n[coordinator]\nlisten = "127.0.0.1:0"\n'
        f"[run]\nrounds = {ROUNDS}\n[run.selection]\nmin_available_devices = 2\ndeadline_min_s = 30\n"
        "[run.compression]\ndensity = 0.1\ndown_density = 0.1\n"
    )
    coordinator = fedmq.start("coordinator", "start", "--config", "fed.toml")
    assert coordinator.stderr is not None
    assert "starting the coordinator" in coordinator.stderr.readline()
    assert "the API listens" in coordinator.stderr.readline()

    said: dict[str, list[str]] = {"js-0": [], "js-1": []}
    first = start_agent("js-0", 0, url)
    second = start_agent("js-1", 1, f"ws://127.0.0.1:{ws_port}")
    for device, agent in (("js-0", first), ("js-1", second)):
        read_until(agent, "connected", said[device])
    watching = fedmq.start("run", "start", str(DIGITS), "--config", "fed.toml", "--watch")

    read_until(first, '"counter":4', said["js-0"])  # the fourth update is made, and perhaps on its way
    said["js-0"] += end(first)
    again = start_agent("js-0", 0, url)

    out, err = watching.communicate(timeout=500)
    assert watching.returncode == 0, err
    read_until(again, "run over", said["js-0"])
    read_until(second, "run over", said["js-1"])
    accuracies = [float(found) for found in re.findall(r"accuracy ([0-9.]+)", out)]
    assert accuracies[0] < 0.3
    assert accuracies[-1] > 0.85
    assert not [
        line for lines in said.values() for line in lines if " refused " in line or " failed " in line
    ]

    assert (
        fedmq.run("run", "report", "my-digits-1", "--config", "fed.toml", "--out", "report").returncode == 0
    )
    report = json.loads((fedmq.folder / "report" / "report.json").read_text())
    counted = {device["id"]: device["updates"] for device in report["devices"]}
    assert accepted(said["js-1"]) == list(range(1, ROUNDS + 1))
    assert counted["js-1"] == ROUNDS
    # Killed between an update and its receipt, a device sends the update again and has the same receipt.
    coordinator.terminate()
    coordinator.communicate(timeout=60)
    mine = accepted(said["js-0"])
    assert mine == sorted(set(mine))
    assert counted["js-0"] == len(mine)
    assert 5 <= len(mine) <= ROUNDS
