"""Rules and dashboard beside the real Prometheus: it scrapes a live federation, and its alerts fire when they should.

Times are shortened, thresholds are not: `for` is left out, and a device counts as silent after a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedmq.watching import Watched, Watching
from fedmq_broker.probe import find_free_port
from fedmq_broker.site import Site
from fedmq_broker.watching.http import Pages
from fedmq_broker.watching.metrics import names
from fedmq_broker.watching.picture import DevicePicture
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.messages import Hello
from tests.broker.watching.stalled import stalled_subscriber
from tests.broker_fixtures import Connect, CustomBroker
from tests.coordinator.shell.doubles import RunningCoordinator, VirtualDevice, coordinator

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text(encoding="utf-8"))
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboard.json").read_text(encoding="utf-8"))
PATIENCE_S = 180.0
"""An exporter that waited long for its coordinator gives it ten times as long to rest."""
NO_PROMETHEUS = "prometheus and promtool are not installed (apt-get install prometheus)"

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None, reason=NO_PROMETHEUS
)

BROKER = """
listener {port} 127.0.0.1
allow_anonymous true
sys_interval 1
max_connections 200
max_packet_size 131072
max_inflight_messages 5
max_inflight_bytes 1000000
max_queued_messages 400
max_queued_bytes 4000000
log_dest topic
log_dest stderr
log_type error
log_type notice
connection_messages true
"""


def promtool(*arguments: str | Path, text: str = "") -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_prometheus
def test_the_configuration_and_the_rules_are_right() -> None:
    assert "SUCCESS" in promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", DEPLOY / "prometheus/rules.yml")


@needs_prometheus
def test_alerts_fire_and_rest_as_their_own_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", DEPLOY / "prometheus/rules.test.yml")
    tested = (DEPLOY / "prometheus/rules.test.yml").read_text(encoding="utf-8")
    untested = [rule["alert"] for rule in alerts() if f'alertname="{rule["alert"]}"' not in tested]
    assert untested == []


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def test_every_alert_says_what_mends_it() -> None:
    for rule in alerts():
        assert rule["annotations"].keys() == {"summary", "mend"}
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert all(panel["targets"] for panel in panels if panel["type"] != "row")


# ------------------------------------------------------------------------------------------------- a live federation


def certificate(path: Path, *, days: float) -> None:
    """A certificate of nobody's, that ends so soon."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]),
    )
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.public_bytes(Encoding.PEM))


@dataclass
class Stage:
    """A broker, a coordinator, two devices, an exporter, and a Prometheus that watches them."""

    broker: CustomBroker
    coordinator: RunningCoordinator
    devices: list[VirtualDevice]
    watching: Watching
    exporter_url: str
    prometheus_url: str

    async def ask(self, path: str, **query: str) -> Any:
        url = f"{self.prometheus_url}/api/v1/{path}?{urllib.parse.urlencode(query)}"

        def fetch() -> Any:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]

        return await asyncio.to_thread(fetch)

    async def value(self, query: str) -> float | None:
        found = (await self.ask("query", query=query))["result"]
        return float(found[0]["value"][1]) if found else None

    async def fires(self, alert: str, **labels: str) -> dict[str, str]:
        """Wait until an alert fires; returns its labels."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for each in (await self.ask("alerts"))["alerts"]:
                    told = each["labels"]
                    fits = told["alertname"] == alert and labels.items() <= told.items()
                    if fits and each["state"] == "firing":
                        return dict(told)
                await asyncio.sleep(0.1)

    async def rests(self, *names: str) -> None:
        """Wait until none of some alerts fires: a machine that stood still may have given one a moment's cause."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.firing() & set(names):  # noqa: ASYNC110 - it is polled
                await asyncio.sleep(0.1)

    async def known(self, query: str) -> float:
        """What a query says, as soon as it says something: a scrape may have been missed just now."""
        return await self.until(query, lambda _: True)

    async def firing(self) -> set[str]:
        told = (await self.ask("alerts"))["alerts"]
        return {each["labels"]["alertname"] for each in told if each["state"] == "firing"}

    def row(self, device: str) -> DevicePicture:
        """What the exporter has of a device."""
        [row] = [each for each in self.watching.picture().devices if each.device == device]
        return row

    async def until(self, query: str, fits: Callable[[float], bool] = bool) -> float:
        """Wait until a query has a value that fits."""
        async with asyncio.timeout(PATIENCE_S):
            while (value := await self.value(query)) is None or not fits(value):  # noqa: ASYNC110 - it is polled
                await asyncio.sleep(0.1)
        return value


def hastened(folder: Path, exporter_url: str) -> Path:
    """Prometheus' own configuration and rules, with shorter times, in `folder`."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "200ms"}
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:9234"]}]  # where the exporter listens by default
    job["static_configs"] = [{"targets": [exporter_url.removeprefix("http://")]}]
    rules = json.loads(json.dumps(RULES))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
            if rule["alert"] == "FedmqDeviceSilent":
                assert " > 600 " in rule["expr"]
                rule["expr"] = rule["expr"].replace(" > 600 ", " > 1 ")
    (folder / "rules.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "prometheus.yml"


@contextlib.contextmanager
def prometheus(folder: Path, exporter_url: str) -> Any:
    port = find_free_port("127.0.0.1")
    folder.mkdir()
    command = [
        "prometheus",
        f"--config.file={hastened(folder, exporter_url)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 100
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5),
            ):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
async def stage(custom_mosquitto: Callable[[str], CustomBroker], tmp_path: Path) -> AsyncIterator[Stage]:
    broker = custom_mosquitto(BROKER)
    url = f"mqtt://127.0.0.1:{broker.port}"
    site = Site(tmp_path / "site")
    certificate(site.mosquitto.certificate, days=9)
    certificate(site.authority.ca, days=900)
    certificate(site.member("dev-0").certificate, days=90)
    conf = broker.log_path.with_suffix(".conf")
    site.mosquitto.pid.write_text(f"{broker.pid}\n")
    settings = BrokerSettings(url=url, reconnect_max_s=0.3, connect_timeout_s=30)
    watched = Watched("home", settings, tmp_path / "coordinator", site, conf, planned_bytes=100_000_000)
    watching = Watching(watched, ask_every_s=0.2, probe_every_s=0.2)
    pages = Pages(watching.picture)
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(coordinator(tmp_path / "coordinator", url))
        exporter_url = await pages.start("127.0.0.1", 0)
        stack.push_async_callback(pages.stop)
        task = asyncio.create_task(watching.run())

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        stack.push_async_callback(stop)
        devices = [VirtualDevice(f"dev-{number}", url) for number in range(2)]
        for device in devices:
            await stack.enter_async_context(device.online())
        at = stack.enter_context(prometheus(tmp_path / "prometheus", exporter_url))
        stage = Stage(broker, running, devices, watching, exporter_url, at)
        await stage.until("fedmq_broker_up and on () fedmq_coordinator_up == 1 and on () broker_uptime > 0")
        await stage.until("sum(fedmq_devices)", lambda number: number == 2)
        yield stage


@needs_prometheus
@pytest.mark.mosquitto
@pytest.mark.timeout(900)
class TestWithPrometheus:
    async def test_all_that_is_asked_for_is_there(self, stage: Stage) -> None:
        """Every metric of rules and dashboard is in a real scrape, and the scrape keeps to the conventions."""
        for device in stage.devices:
            device.trains = False  # so that the round stays open
        run = await stage.coordinator.ask("start_run", "find.py")
        await stage.until("fedmq_round_age_seconds")
        with stalled_subscriber(stage.broker.port, "x", "y"), stalled_subscriber(stage.broker.port, "x", "y"):
            await stage.until('fedmq_client_troubles_total{client="x", kind="taken-over"}')
        text = (
            (await asyncio.to_thread(urllib.request.urlopen, f"{stage.exporter_url}/metrics")).read().decode()
        )
        assert await asyncio.to_thread(promtool, "check", "metrics", text=text) == ""
        asked = {
            name
            for expression in [*(rule["expr"] for rule in alerts()), *dashboard_expressions()]
            for name in re.findall(r"\b(?:fedmq|broker)_[a-z0-9_]+", expression)
        }
        only_when_it_happens = {
            "fedmq_updates_rejected_total",
            "fedmq_messages_refused_total",
            "fedmq_device_floods",
        }
        assert len(asked) > 30
        wanted = (asked - only_when_it_happens) | names(text.splitlines())
        async with asyncio.timeout(PATIENCE_S):
            while wanted - set(await stage.ask("label/__name__/values")):  # noqa: ASYNC110 - it is polled
                await asyncio.sleep(0.1)
        assert await stage.known(f'fedmq_run_info{{run="{run}", state="active"}}') == 1
        assert await stage.known("fedmq_round_goal") == 2

    async def test_a_queue_that_fills_is_told_before_anything_is_dropped(
        self, stage: Stage, connect: Connect
    ) -> None:
        publisher = await connect(f"mqtt://127.0.0.1:{stage.broker.port}", "publisher")
        assert "FedmqBrokerQueueFilling" not in await stage.firing()
        with stalled_subscriber(stage.broker.port, "dev-7", "work"):
            for _ in range(230):  # of the 400 that may wait, and 5 on the way
                await publisher.publish("work", b"x" * 100)
            await stage.fires("FedmqBrokerQueueFilling")
            assert await stage.known("broker_publish_messages_dropped") == 0
            assert stage.watching.picture().broker.figures["broker_publish_messages_dropped"] == 0
            assert not {"FedmqBrokerDropping", "FedmqBrokerQueueNearlyFull"} & await stage.firing()
            for _ in range(120):
                await publisher.publish("work", b"x" * 100)
            await stage.fires("FedmqBrokerQueueNearlyFull")
            assert await stage.known("broker_publish_messages_dropped") == 0
            for _ in range(120):
                await publisher.publish("work", b"x" * 100)
            await stage.fires("FedmqBrokerDropping")
            told = await stage.fires("FedmqClientTrouble", kind="dropped")
            assert told["client"] == "dev-7"

    async def test_a_device_that_floods_is_named(self, stage: Stage) -> None:
        device, hello = stage.devices[1], Hello()
        connection = device.connection
        topic = device.topics.up("dev-1", "hello")
        packets = [device.sealer.seal(topic, hello) for _ in range(1_500)]

        async def flood() -> None:
            while True:
                for packet in packets:
                    await connection.publish(topic, packet, qos=0)
                await asyncio.sleep(1.0)

        flooding = asyncio.create_task(flood())
        try:
            told = await stage.fires("FedmqDeviceFloods")
            assert told["device"] == "dev-1"
            async with asyncio.timeout(PATIENCE_S):
                while not (row := stage.row("dev-1")).floods:  # noqa: ASYNC110 - it is polled
                    await asyncio.sleep(0.1)
            assert "dropped" in row.problem
        finally:
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)

    async def test_whatever_goes_is_missed(self, stage: Stage) -> None:
        """One after the other: a round's deadline, a device, the coordinator, the broker."""
        told = await stage.fires("FedmqCertificateEndsSoon")
        assert told["name"] == "server"
        # A machine that does much else may be slow, and may well say so; or have stood still for a moment.
        others = {rule["alert"] for rule in alerts()} - {"FedmqBrokerSlow", "FedmqCertificateEndsSoon"}
        await stage.rests(*others)

        stage.devices[0].trains = False
        settings = {"rounds": 1, "selection": {"round_timeout_s": 600.0, "deadline_factor": 2.0}}
        await stage.coordinator.ask("start_run", "find.py", settings=settings)
        told = await stage.fires("FedmqRoundMissedDeadline")
        assert told["closed_by"] in {"deadline", "timeout"}

        await stage.rests("FedmqDeviceSilent")
        await stage.devices[1].connection.stop(graceful=False)
        told = await stage.fires("FedmqDeviceSilent")
        assert (told["device"], told["severity"]) == ("dev-1", "warning")

        await stage.rests("FedmqCoordinatorDown", "FedmqBrokerDown")
        await asyncio.to_thread(subprocess.run, ["kill", str(stage.broker.pid)], check=True)
        await stage.fires("FedmqBrokerDown")
        await stage.fires("FedmqCoordinatorOffBroker")
        stage.coordinator.stop.set()
        await stage.fires("FedmqCoordinatorDown")


def dashboard_expressions() -> list[str]:
    return [
        target["expr"]
        for panel in DASHBOARD["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    ]
