"""A whole federation behind the gate: nobody asks for more than it is granted, and that is enough for a run."""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest

from fedmq_protocol.access import COORDINATOR, ROLES, allows, rules
from tests.broker.gate.conftest import stopped, world  # noqa: F401 - fixtures
from tests.broker.gate.world import World
from tests.fedmq.command_line import CommandLine

pytestmark = pytest.mark.mosquitto

SMALL_PACKETS = "8192"
"""So small that updates and snapshots go in chunks: offers, credits and gets are said too."""

RECEIVED = re.compile(r"Received PUBLISH from (\S+) \(d\d, q\d, r\d, m\d+, '([^']+)'")
SENT = re.compile(r"Sending PUBLISH to (\S+) \(d\d, q\d, r\d, m\d+, '([^']+)'")


@pytest.mark.timeout(600)
def test_a_run_over_mutual_tls_needs_no_more_than_the_rules(fedmq: CommandLine, world: World) -> None:  # noqa: F811
    fedmq.environment["FEDMQ_BROKER__MAX_PACKET_BYTES"] = SMALL_PACKETS
    config = world.site.folder.parent / "fed.toml"
    config.write_text(
        f'[federation]\nname = "home"\n[mosquitto]\nhosts = ["localhost"]\nport = {world.port}\n'
        '[coordinator]\nlisten = "127.0.0.1:0"\n[run]\nrounds = 3\n'
        "[run.selection]\nmin_available_devices = 2\ndeadline_factor = 0\n"
        "[run.compression]\ndensity = 0.9\ndown_density = 0.9\n"
    )
    data = ("--data", "partition_id={index}", "--data", "num_partitions=2")
    coordinator = fedmq.start("coordinator", "start", "--config", str(config))
    assert coordinator.stderr is not None
    assert any("the API listens" in line for line in coordinator.stderr)
    enrolled = fedmq.run(
        "device", "enroll", "--count", "2", "--task", "digits", *data, "--config", str(config)
    )
    assert "the broker knows, from now on" in enrolled.stdout, enrolled.stderr
    agents = []
    for name in ("dev-1", "dev-2"):
        board = fedmq.folder / name  # a device has its own copy: the operator's goes when it is revoked
        shutil.copytree(world.site.member(name).folder, board)
        agents.append(fedmq.start("agent", "start", "--config", str(board / "device.toml")))
    started = fedmq.run("run", "start", "--config", str(config), "digits", "--watch", timeout_s=400)
    assert started.returncode == 0, started.stdout + started.stderr
    listed = json.loads(fedmq.run("device", "ls", "--config", str(config), "--json").stdout)
    assert [each["coordinator"]["state"] for each in listed] == ["idle", "idle"]

    assert "the broker knows" in fedmq.run("device", "revoke", "dev-1", "--config", str(config)).stdout
    deadline = time.monotonic() + 60
    while "certificate verify failed" not in world.log.rpartition("Reloading config")[2]:
        assert time.monotonic() < deadline, "the revoked agent was not refused"
        time.sleep(0.1)
    for process in (*agents, coordinator):
        process.terminate()
        process.communicate(timeout=60)

    log = world.log
    assert "Denied" not in log
    assert "QoS 128" not in log
    said = {pair for pair in RECEIVED.findall(log) if not pair[1].startswith("$")}
    heard = {pair for pair in SENT.findall(log) if not pair[1].startswith("$")}
    assert {who for who, _ in said} == {"dev-1", "dev-2", COORDINATOR, "@operator"}
    for action, pairs in (("publish", said), ("receive", heard)):
        for who, topic in pairs:
            assert allows(rules(world.topics, who), action, topic), (who, action, topic)  # type: ignore[arg-type]
    kinds = {topic.rpartition("/")[2] for who, topic in said if who not in ROLES}
    assert {"presence", "offer", "chunk"} <= kinds
    spoken = {re.sub(r"/model/.*", "/model", topic).partition("/v1/home/")[2] for _, topic in heard}
    assert {"model", "coordinator/run", "coordinator/status", "dev/dev-1/down/receipt"} <= spoken
