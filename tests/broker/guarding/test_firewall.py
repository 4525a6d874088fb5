"""The rules for the kernel, loaded by a real nft in a network namespace of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq_broker.guarding.firewall import address_limits, render
from fedmq_protocol.errors import UsageError
from tests.broker.guarding import behind_firewall

PORT = 18_883


def unshared() -> list[str]:
    """How to run a command in a network namespace of its own; skips the test where that cannot be."""
    nft, unshare = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin"), shutil.which("unshare")
    if (
        nft is None
        or unshare is None
        or shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ):
        pytest.skip("nft, unshare or ip is not installed (apt-get install nftables iproute2)")
    command = [unshare, "-n", "--"]
    probe = subprocess.run([*command, nft, "list", "ruleset"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no network namespace of our own, or no nf_tables in this kernel: root has both")
    return command


def test_one_address_is_bounded_and_another_is_not_touched(tmp_path: Path) -> None:
    command = unshared()
    rules = tmp_path / "fedmq.nft"
    rules.write_text(render([PORT, PORT + 1], devices=1))
    limits = address_limits(1)
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(
        [*command, sys.executable, behind_firewall.__file__, str(rules), str(PORT)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert limits.new_burst == behind_firewall.AT_ONCE
    assert found["held"] == limits.connections
    assert found["other"]
    most = limits.bytes_per_s * (4 + found["seconds"])
    assert found["bytes"] < 1.3 * most  # packets of 64 kB on the loopback interface
    assert found["bytes"] > limits.bytes_per_s  # and it is let through so far


def test_a_whole_fleet_may_stand_behind_one_router() -> None:
    """All come back at once, while their old connections still count, and the coordinator is there, too."""
    limits = address_limits(2_000)
    assert limits.connections >= 2 * 2_000
    assert limits.new_burst >= 2 * 2_000


def test_without_ports_or_devices_there_is_nothing_to_render() -> None:
    with pytest.raises(UsageError):
        render([], devices=1)
    with pytest.raises(UsageError):
        render([PORT], devices=0)
