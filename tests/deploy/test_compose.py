"""The compose file and the images, as far as they can be held to account without a Docker engine.

The compose file is checked against the published schema; then each name in it that means something to us is
followed to what it names: files, verbs and options of the command, settings, Dockerfiles.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import validator_for

from fedmq.tables import models, read
from tests.command_lines import check_command

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILES = sorted({ROOT / service["build"]["dockerfile"] for service in OURS.values()})


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: (name, rest), comments dropped, continued lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def mounts(service: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The service's mounts of one kind, bind or volume, in the long form."""
    long = [
        volume
        if isinstance(volume, dict)
        else dict(zip(("source", "target"), volume.split(":"), strict=True))
        for volume in service.get("volumes", [])
    ]
    return [mount for mount in long if mount.get("type", "volume") == kind]


def test_the_file_is_a_compose_file() -> None:
    package = find_spec("check_jsonschema")  # wanted for its copy of the schema alone, so not imported
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    problems = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator_for(schema)(schema).iter_errors(COMPOSE)
    ]
    assert problems == []


def test_there_is_a_broker_a_coordinator_and_three_devices() -> None:
    assert set(SERVICES) == {"broker", "coordinator", "agent-1", "agent-2", "agent-3"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_comes_back_and_says_how_it_is(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    probe, program, *arguments = service["healthcheck"]["test"]
    assert probe == "CMD"
    if program == "fedmq":
        check_command(arguments)
    else:  # of the base image's own
        assert program in {"mosquitto_sub", "grep"}


@pytest.mark.parametrize("name", OURS)
def test_the_command_of_a_service_is_one_of_ours(name: str) -> None:
    check_command(OURS[name]["command"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    for mount in mounts(SERVICES[name], "bind"):
        assert (ROOT / mount["source"]).is_file()
        assert mount["read_only"]
    for mount in mounts(SERVICES[name], "volume"):
        assert mount["source"] in COMPOSE["volumes"]


def test_state_is_in_volumes_that_no_two_services_share() -> None:
    used = [mount["source"] for service in SERVICES.values() for mount in mounts(service, "volume")]
    assert sorted(used) == sorted(COMPOSE["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_hold(name: str) -> None:
    """Each file is read by the code that reads it in the container, and says what the compose file implies."""
    [mount] = mounts(OURS[name], "bind")
    assert OURS[name]["command"][-1] == mount["target"]
    configuration = read(ROOT / mount["source"], environ={})
    shown = {line.key: line.value for line in configuration.show(models())}
    assert shown["federation.name"] == '"compose"'
    assert shown["broker.url"] == '"mqtt://broker:1883"'
    assert f"{1883:04X}" == "075B"  # the port, as the health check looks for it
    [state] = mounts(OURS[name], "volume")
    state_dir = shown["coordinator.state_dir" if name == "coordinator" else "device.state_dir"].strip('"')
    assert Path(state_dir).is_relative_to(state["target"])


def test_the_devices_hold_different_data() -> None:
    shown = [
        {
            line.key: line.value
            for line in read(ROOT / f"deploy/compose/device-{n}.toml", environ={}).show(models())
        }
        for n in (1, 2, 3)
    ]
    assert len({device["device.id"] for device in shown}) == 3
    assert [device["device.data.partition_id"] for device in shown] == ["0", "1", "2"]
    assert {device["device.data.num_partitions"] for device in shown} == {"3"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_runs_our_command_as_nobody_in_particular(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    last = dict(steps)
    assert json.loads(last["ENTRYPOINT"]) == ["fedmq"]
    check_command(json.loads(last["CMD"]))
    users = [rest for name, rest in steps if name == "USER"]
    assert users == ["fedmq"]
    assert sum(name == "FROM" for name, _ in steps) == 2  # what builds the wheel is not in what ships


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_what_an_image_copies_is_there_and_not_ignored(dockerfile: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    for name in sent:
        assert (ROOT / name).exists(), name
    for name, rest in instructions(dockerfile):
        if name == "COPY" and not rest.startswith("--from"):
            source = rest.split()[0]
            assert source == "." or source in sent
