"""Finding Mosquitto, and configurations that it accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmq_broker.mosquitto import LocalConfig, find_mosquitto, mosquitto_version, render_local_config
from tests.broker_fixtures import require_mosquitto

ROOT = Path(__file__).parents[2]


def test_finding_it(tmp_path: Path) -> None:
    assert find_mosquitto(str(tmp_path)) is None
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'mosquitto version 2.1.2'\n")
    assert find_mosquitto(str(tmp_path)) is None  # not executable
    program.chmod(0o755)
    assert find_mosquitto(str(tmp_path)) == program
    assert mosquitto_version(program) == (2, 1, 2)
    assert mosquitto_version(tmp_path / "absent") == ()


@pytest.mark.mosquitto
def test_the_version_of_the_real_one() -> None:
    assert mosquitto_version(require_mosquitto()) >= (1, 4)


def test_every_setting_has_its_reason_beside_it(tmp_path: Path) -> None:
    text = render_local_config(LocalConfig(state_dir=tmp_path), (2, 0, 11))
    for block in text.strip().split("\n\n"):
        assert block.startswith("#")
    settings = [line.split()[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert {"listener", "allow_anonymous", "set_tcp_nodelay", "max_packet_size", "autosave_interval"} <= set(
        settings
    )
    assert "message_size_limit" not in settings


def test_an_old_one_is_not_told_what_it_does_not_know() -> None:
    assert "max_packet_size" not in render_local_config(LocalConfig(), (1, 5, 7))
    assert "max_packet_size 131072" in render_local_config(LocalConfig(max_packet_bytes=131_072), (1, 6))
