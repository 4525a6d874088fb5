"""`fedmq broker check` as scripts and people see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmq.cli import run


def test_people_get_line_and_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mosquitto.conf"
    path.write_text("listener 1883 127.0.0.1\nmessage_size_limit 1000\n")
    assert run(["broker", "check", str(path), "--devices", "10", "--for", "2.0.11"]) == 1
    said = capsys.readouterr().out
    assert f"error: {path}:2: what is larger than 1,000 bytes is acknowledged and thrown away" in said
    assert "mend: take the line out, and write max_packet_size 131072" in said
    assert "for 10 devices and 1,000,000 parameters, read by Mosquitto 2.0.11" in said


def test_scripts_get_json_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mosquitto.conf"
    path.write_text("max_que_messages 5\n")
    assert run(["broker", "check", str(path), "--json", "--no-machine"]) == 1
    found = {one["rule"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["unknown-option"]["line"] == 1
    assert found["unknown-option"]["severity"] == "error"
    assert found["unknown-option"]["setting"] == "max_que_messages 5"
    assert found["no-listener"]["line"] is None


def test_the_fleet_comes_from_the_file_of_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml, path = tmp_path / "fed.toml", tmp_path / "mosquitto.conf"
    toml.write_text("[mosquitto]\ndevices = 4000\nparameters = 5000\n[broker]\nmax_packet_bytes = 65536\n")
    path.write_text("max_queued_messages 30000\nmax_packet_size 65535\n")
    assert run(["broker", "check", str(path), "--config", str(toml)]) == 1
    said = capsys.readouterr().out
    assert "fedmq sends 65,536" in said
    assert "4,000 devices can send 33,000" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["absent.conf"], "there is no file 'absent.conf'"), ([__file__, "--for", "new"], "no version")],
)
def test_what_cannot_be_checked(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["broker", "check", *arguments]) == 1
    assert says in capsys.readouterr().err
