"""`fedmq device enroll|ls|show|renew|rename|revoke`, as the operator types them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmq.cli import run
from fedmq.tables import read
from fedmq_broker import membership
from fedmq_broker.site import Site
from fedmq_protocol.access import ROLES
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.signing import load_or_create_key
from tests.broker.gate.conftest import come_in, stopped, world  # noqa: F401 - fixtures
from tests.broker.gate.world import World


class Operator:
    """Types commands, beside a file of their own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.config = folder / "fed.toml"
        self._capsys = capsys

    @property
    def site(self) -> Site:
        return Site(self.folder / "site")

    def __call__(self, *arguments: str) -> str:
        code, out, err = self.tries(*arguments)
        assert code == 0, err
        return out

    def tries(self, *arguments: str) -> tuple[int, str, str]:
        code = run(["device", *arguments, "--config", str(self.config)])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def settings(self, name: str) -> dict[str, Any]:
        return tomllib.loads(self.site.member(name).settings.read_text())


@pytest.fixture
def operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Operator]:
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0o022)
    operator = Operator(tmp_path, capsys)
    operator.config.write_text('[federation]\nname = "home"\n[mosquitto]\nhosts = ["localhost"]\nport = 1\n')
    membership.prepare(operator.site, "home", ["localhost"])
    yield operator
    os.umask(umask)


def test_what_enroll_makes_is_what_an_agent_starts_with(operator: Operator) -> None:
    key = load_or_create_key(operator.folder / "state/coordinator/key").public_key.hex()
    said = operator("enroll", "dev-1", "--task", "digits", "--data", "partition_id=3", "--data", 'x.y=é"')
    assert "dev-1 is enrolled: certificate (until 20" in said
    assert "the broker does not run: it knows from its next start on" in said
    assert "next: fedmq device flash dev-1" in said
    assert "believe the first" not in said
    configuration = read(operator.site.member("dev-1").settings, environ={})
    broker = configuration.table("broker", BrokerSettings)
    for path, mode in ((broker.ca_file, 0o644), (broker.cert_file, 0o644), (broker.key_file, 0o600)):
        assert path is not None
        assert path.stat().st_mode & 0o777 == mode
    assert operator.site.members.stat().st_mode & 0o777 == 0o700
    assert operator.settings("dev-1") == {
        "federation": {"name": "home"},
        "broker": {
            "url": "mqtts://localhost:1",
            "ca_file": "ca.pem",
            "cert_file": "cert.pem",
            "key_file": "key.pem",
        },
        "device": {
            "id": "dev-1",
            "task": "digits",
            "coordinator_key": key,
            "data": {"partition_id": 3, "x": {"y": 'é"'}},
        },
    }


def test_a_task_that_is_not_here_is_named(operator: Operator) -> None:
    assert "there is no task file nowhere.py here" in operator("enroll", "dev-1", "--task", "nowhere.py")


def test_many_at_once_are_numbered_and_counted(operator: Operator) -> None:
    operator("enroll", "dev-2")
    said = operator("enroll", "--count", "7", "--data", "partition_id={index}")
    assert "... and 2 more, 7 in all" in said
    listed = [each["name"] for each in json.loads(operator("ls", "--json"))]
    assert listed == [f"dev-{number}" for number in range(1, 9)]
    assert operator.settings("dev-1")["device"]["data"] == {"partition_id": 0}
    assert operator.settings("dev-8")["device"]["data"] == {"partition_id": 6}


def test_a_board_that_comes_in_by_password(operator: Operator) -> None:
    said = operator("enroll", "board", "--password")
    password = operator.site.member("board").password.read_text().strip()
    assert said.count(password) == 1
    assert password not in operator("enroll", "other", "--password", "--json")
    assert operator.settings("board")["broker"] == {
        "url": "mqtts://localhost:8885",
        "ca_file": "ca.pem",
        "username": "board",
        "password_file": "password",
    }
    assert password not in operator("ls") + operator("show", "board")


def test_a_key_that_the_device_made(operator: Operator) -> None:
    """With the very command that the complaint about a bad request names."""
    (operator.folder / "bad.csr").write_text("nonsense")
    code, _, err = operator.tries("enroll", "dev-1", "--csr", "bad.csr")
    assert code == 1
    command = err.partition("make one with: ")[2].split()
    assert command[:2] == ["openssl", "req"]
    subprocess.run(command, check=True, capture_output=True)
    said = operator("enroll", "dev-1", "--csr", "dev-1.csr")
    assert "its key stays on the device" in said
    assert not operator.site.member("dev-1").key.exists()


def test_a_renamed_device_keeps_its_settings(operator: Operator) -> None:
    operator("enroll", "dev-1", "--task", "digits", "--data", "partition_id=3")
    path = operator.site.member("dev-1").settings
    path.write_text(path.read_text() + "\n[trainer]\nthreads = 2\n")
    before = operator.settings("dev-1")
    said = operator("rename", "dev-1", "alice")
    assert "To the coordinator alice is a new device" in said
    assert operator.settings("alice") == {**before, "device": {**before["device"], "id": "alice"}}
    states = {each["name"]: each["state"] for each in json.loads(operator("ls", "--all", "--json"))}
    assert states["dev-1"] == "revoked"
    assert states["alice"] == "enrolled"
    assert not operator.site.member("dev-1").key.exists()


def test_renewing_makes_another_certificate(operator: Operator) -> None:
    operator("enroll", "dev-1")
    operator("enroll", "short", "--days", "0.01")
    assert "no device's certificate is due" in operator("renew", "--due")
    serial = json.loads(operator("show", "dev-1", "--json"))["serial"]
    assert "once it is flashed again: fedmq device flash dev-1" in operator("renew", "dev-1")
    assert json.loads(operator("show", "dev-1", "--json"))["serial"] != serial


def test_the_broker_s_and_the_roles_certificates_are_renewed_by_one_command(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    before = operator.site.mosquitto.certificate.read_bytes()
    assert run(["broker", "renew", "--config", str(operator.config)]) == 0
    said = capsys.readouterr().out
    assert "a certificate of the broker, for localhost" in said
    assert all(f"a certificate of {role}" in said for role in ROLES)
    assert operator.site.mosquitto.certificate.read_bytes() != before
    assert run(["broker", "init", "--config", str(operator.config)]) == 0
    assert "certificate of" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["enroll", "dev-1"], "dev-1 is enrolled already: fedmq device renew dev-1"),
        (["enroll", "dev-9", "dev-1"], "dev-1 is enrolled already"),
        (["enroll", "dev-9", "dev-9"], "dev-9 is named twice"),
        (["enroll", "Dev"], "device 'Dev' is not usable"),
        (["enroll", "@coordinator"], "device '@coordinator' is not usable"),
        (["enroll", "../dev"], "device '../dev' is not usable"),
        (["enroll"], "name the devices, or say how many"),
        (["enroll", "a", "b", "--csr", "x"], "--csr is the request of one device"),
        (["enroll", "a", "--csr", "none.csr"], "there is no file 'none.csr'"),
        (
            ["enroll", "a", "--csr", "fed.toml"],
            "this is no certificate signing request: make one with: openssl",
        ),
        (["enroll", "a", "--csr", "x", "--password"], "a device comes in by one of them"),
        (["enroll", "a", "--data", "nonsense"], "must be key=value"),
        (["show", "dev-11"], "dev-11 is no member; did you mean dev-1?"),
        (["revoke", "nobody"], "nobody is no member"),
        (["revoke", "dev-1", "nobody"], "nobody is no member"),
        (["revoke", "@operator"], "@operator is who revokes"),
        (["renew", "gone"], "gone was revoked: fedmq device enroll gone lets it in anew"),
        (["rename", "dev-1", "gone/"], "device 'gone/' is not usable"),
        (["rename", "@monitor", "watcher"], "@monitor is a role, not a device"),
        (["rename", "dev-1", "dev-1"], "dev-1 is called that already"),
        (["rename", "dev-1", "@guard"], "device '@guard' is not usable"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    operator: Operator, arguments: list[str], said: str
) -> None:
    operator("enroll", "dev-1", "gone")
    operator("revoke", "gone")
    before = json.loads(operator("ls", "--all", "--json"))
    code, out, err = operator.tries(*arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert json.loads(operator("ls", "--all", "--json")) == before
    assert operator.site.member("dev-1").key.exists()
    assert not list(operator.site.members.glob(".*"))


def test_without_an_authority_or_a_site_it_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    operator = Operator(tmp_path, capsys)
    operator.config.write_text('[broker]\nurl = "mqtt://localhost"\n')
    assert "there is no [mosquitto] table" in operator.tries("ls")[2]
    operator.config.write_text('[mosquitto]\nhosts = ["localhost"]\n')
    for arguments in (["ls"], ["enroll", "a"], ["revoke", "a"]):
        assert "fedmq broker init makes one" in operator.tries(*arguments)[2]


@pytest.mark.mosquitto
async def test_with_a_running_broker_it_takes_effect_at_once(world: World) -> None:  # noqa: F811 - a fixture
    """In a process of its own, as the operator would."""
    config = world.site.folder.parent / "fed.toml"
    config.write_text(
        f'[federation]\nname = "home"\n[mosquitto]\nhosts = ["localhost"]\nport = {world.port}\n'
    )

    async def fedmq(*arguments: str) -> str:
        return await asyncio.to_thread(_in_process, [*arguments, "--config", str(config)])

    assert "the broker knows, from now on" in await fedmq("device", "enroll", "dev-1")
    assert '"broker": "live"' in await fedmq("device", "revoke", "dev-1", "--json")


def _in_process(arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fedmq", *arguments], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
