"""The compose file and the images, as far as they can be held to account without a Docker engine.

The compose file is checked against the published schema; then each name in it that means something to us is
followed to what it names: files, verbs and options of the command, settings, Dockerfiles.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from jsonschema.validators import validator_for

from fedmq.commands.broker_site import plan_of
from fedmq.tables import models, read, site_of
from fedmq_broker import membership
from fedmq_broker.checking import check
from fedmq_broker.preparing import prepare
from fedmq_broker.probe import find_free_port
from fedmq_broker.service import start_site
from fedmq_broker.site import Site
from fedmq_broker.sizing import plan
from tests.broker_fixtures import Connect, require_mosquitto
from tests.command_lines import check_command

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILES = sorted({ROOT / service["build"]["dockerfile"] for service in OURS.values()})


SITE = Path("deploy/compose/site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """What `fedmq broker init` and `fedmq device enroll` make of the compose example's file, on ports that are free."""
    require_mosquitto()
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(ROOT / "deploy/compose/fed.toml", folder)
    configuration = read(
        folder / "fed.toml",
        environ={
            "FEDMQ_MOSQUITTO__PORT": str(find_free_port("127.0.0.1")),
            "FEDMQ_MOSQUITTO__LISTEN": "127.0.0.1",
        },
    )
    made = site_of(configuration)
    assert made.folder == folder / SITE.name
    prepare(made, replace(plan_of(configuration), user=getpass.getuser()), running=False)
    asyncio.run(membership.enrol(made, ["device-1", "device-2", "device-3"], live=None))
    return made


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
        assert program == "grep"


@pytest.mark.parametrize("name", OURS)
def test_the_command_of_a_service_is_one_of_ours(name: str) -> None:
    check_command(OURS[name]["command"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str, site: Site) -> None:
    """Files of the repository, or folders that the first two commands in the compose file's head have made."""
    for mount in mounts(SERVICES[name], "bind"):
        source = Path(mount["source"])
        if source.is_relative_to(SITE):
            assert (site.folder / source.relative_to(SITE)).is_dir()
            assert mount["bind"]["create_host_path"] is False  # as root, and empty
        else:
            assert (ROOT / source).is_file()
        assert mount.get("read_only", False) == (name != "broker")
    for mount in mounts(SERVICES[name], "volume"):
        assert mount["source"] in COMPOSE["volumes"]


def test_no_container_sees_the_authority_or_another_members_key(site: Site) -> None:
    seen = {
        name: [
            Path(mount["source"])
            for mount in mounts(service, "bind")
            if Path(mount["source"]).is_relative_to(SITE)
        ]
        for name, service in SERVICES.items()
    }
    assert seen == {
        "broker": [SITE / "mosquitto"],
        "coordinator": [SITE / "members/@coordinator"],
        **{f"agent-{n}": [SITE / f"members/device-{n}"] for n in (1, 2, 3)},
    }


def test_the_commands_in_its_head_are_the_commands_that_are() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8").partition("\nname:")[0]
    lines = [line.removeprefix("#").strip() for line in text.splitlines()]
    found = [
        line.partition("fedmq ")[2].split()
        for line in lines
        if re.match(r"(docker compose exec \S+ )?fedmq ", line)
    ]
    assert len(found) == 5
    for arguments in found:
        check_command(arguments)


@pytest.mark.parametrize("name", SERVICES)
def test_each_runs_as_whoever_owns_the_files(name: str) -> None:
    service = SERVICES[name]
    uid = "${FEDMQ_UID:-1000}"
    assert (service["build"]["args"]["FEDMQ_UID"] if "build" in service else service["user"]) == uid


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_makes_its_user_of_that_number(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    assert ("ARG", "FEDMQ_UID=10001") in steps
    assert any(
        rest.startswith("useradd --system --uid ${FEDMQ_UID} ") for name, rest in steps if name == "RUN"
    )


@pytest.mark.mosquitto
async def test_mosquitto_runs_with_those_very_files_and_lets_each_in(site: Site, connect: Connect) -> None:
    """What the broker's container runs, in the folder that it runs in, but for the port."""
    broker = SERVICES["broker"]
    [mount] = mounts(broker, "bind")
    assert broker["working_dir"] == mount["target"]
    program, *arguments = broker["command"]
    assert (program, arguments) == ("mosquitto", ["-c", site.mosquitto.configuration.name])
    with start_site(site) as running:
        for member in ("@coordinator", "device-1", "device-2", "device-3"):
            files = site.member(member)
            connection = await connect(
                f"mqtts://localhost:{running.port}",
                "any",
                ca_file=files.folder / "ca.pem",
                cert_file=files.certificate,
                key_file=files.key,
            )
            await connection.stop()


def test_the_certificate_names_the_broker_as_its_service_is_called(site: Site) -> None:
    certificate = x509.load_pem_x509_certificate(site.mosquitto.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"broker", "localhost"} <= set(names.get_values_for_type(x509.DNSName))


def test_what_is_rendered_for_the_container_passes_the_check(site: Site) -> None:
    found = check(
        site.mosquitto.configuration, devices=10, limits=plan(10, 100_000, listeners=1), version=(2, 0, 22)
    )
    assert [one for one in found if one.rule != "user-root"] == []  # who tests may be root


def test_state_is_in_volumes_that_no_two_services_share() -> None:
    used = [mount["source"] for service in SERVICES.values() for mount in mounts(service, "volume")]
    assert sorted(used) == sorted(COMPOSE["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_hold(name: str) -> None:
    """Each file is read by the code that reads it in the container, and says what the compose file implies."""
    service = OURS[name]
    [mount] = [mount for mount in mounts(service, "bind") if mount["target"].endswith(".toml")]
    [identity] = [mount for mount in mounts(service, "bind") if not mount["target"].endswith(".toml")]
    assert service["command"][-1] == mount["target"]
    configuration = read(ROOT / mount["source"], environ=service.get("environment", {}))
    shown = {line.key: line.value for line in configuration.show(models())}
    assert shown["federation.name"] == '"compose"'
    assert shown["broker.url"] == '"mqtts://broker:8883"'
    assert f"{8883:04X}" == "22B3"  # the port, as the health checks look for it
    for key, file in (("ca_file", "ca.pem"), ("cert_file", "cert.pem"), ("key_file", "key.pem")):
        path = Path(shown[f"broker.{key}"].strip('"'))
        assert (path.parent.name, path.name) == (Path(identity["target"]).name, file)
    [state] = mounts(service, "volume")
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
