"""Where the floods of `floods.py` take place: a Mosquitto as a site has it, a coordinator, and ten devices.

Each in a process of its own, so that processor time and memory can be told apart. The devices are real agents, ten in
one process, with trainers that take a fixed time and send a fixed update.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.stand_ins import NumbersHost
from fedmq_broker import membership
from fedmq_broker.guarding.patrol import Patrol
from fedmq_broker.guarding.quarantine import Quarantine
from fedmq_broker.guarding.watching import allowance
from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.probe import find_free_port
from fedmq_broker.render import Wanted, find_plugin, render
from fedmq_broker.site import Site
from fedmq_broker.sizing import plan
from fedmq_coordinator.shell.main import run_coordinator_forever
from fedmq_coordinator.shell.model_host import Beginning
from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_edge_agent.shell.service import AgentService
from fedmq_edge_agent.shell.settings import AgentSettings
from fedmq_protocol.access import GUARD
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.codecs import CodecSpec, encode_update
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.topics import Topics

FEDERATION: Final = "bench"
HOST: Final = "127.0.0.1"
DEVICES: Final = 10
PARAMETERS: Final = 300_000
DENSITY: Final = 0.01
FLOODER: Final = "flooder"
TRAIN_S: Final = 0.25
SCHEMA: Final = TensorSchema(
    entries=(TensorEntry(name="w", shape=(PARAMETERS,), dtype="float32", role="parameter"),)
)

Vector = NDArray[np.float32]


def device_name(number: int) -> str:
    """Of a device that does no harm."""
    return f"dev-{number}"


@dataclass(frozen=True)
class Place:
    """Where everything lies.

    Attributes:
        root: of all files.
        port: of the broker.
    """

    root: Path
    port: int

    @property
    def site(self) -> Site:
        return Site(self.root / "site")

    def settings(self, member: str) -> BrokerSettings:
        """How a member reaches the broker."""
        files = self.site.member(member)
        return BrokerSettings(
            url=f"mqtts://{HOST}:{self.port}",
            ca_file=self.site.authority.ca,
            cert_file=files.certificate,
            key_file=files.key,
        )


# ------------------------------------------------------------------------------------------- the broker


async def build(root: Path) -> Place:
    """A site with ten devices and the flooder enrolled."""
    place = Place(root, find_free_port(HOST))
    site = place.site
    membership.prepare(site, FEDERATION, [HOST])
    await membership.enrol(site, [*map(device_name, range(DEVICES)), FLOODER], live=None)
    membership.render_files(site)
    wanted = Wanted(
        federation=FEDERATION,
        limits=plan(DEVICES + 1, PARAMETERS),
        port=place.port,
        websockets_port=0,
        password_port=0,
        listen=HOST,
        user=os.environ.get("USER", "root"),
        plugin=find_plugin(),
    )
    site.mosquitto.data.mkdir(exist_ok=True)
    site.mosquitto.configuration.write_text(render(wanted))
    return place


@contextlib.contextmanager
def mosquitto(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """The site's broker."""
    program = find_mosquitto()
    assert program is not None, "mosquitto is not installed"
    files = place.site.mosquitto
    with files.log.open("ab") as log:
        process = subprocess.Popen([program, "-c", files.configuration.name], cwd=files.folder, stderr=log)  # noqa: S603
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


async def be_guard(place: Place) -> None:
    """What the guard's process does, until it is killed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    patrol = Patrol(
        place.settings(GUARD),
        Topics(FEDERATION),
        frozenset({place.port}),
        Quarantine(place.site.quarantine),
        allowance(PARAMETERS),
    )
    await patrol.run(asyncio.Event())


# ------------------------------------------------------------------------------------------- the coordinator


def _begin(seed: int, _: str) -> Beginning:
    weights = np.random.default_rng(seed).normal(scale=0.1, size=PARAMETERS).astype(np.float32)
    return Beginning(weights=weights)


async def be_coordinator(place: Place) -> None:
    """What the coordinator's process does, until it is stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    settings = CoordinatorSettings(
        federation=FEDERATION,
        broker=place.settings("@coordinator"),
        state_dir=place.root / "coordinator",
        listen=f"{HOST}:0",
    )
    await run_coordinator_forever(settings, model_host=NumbersHost("flooded", SCHEMA, _begin))


# ------------------------------------------------------------------------------------------- the devices


class _Trainer:
    """A trainer child of no process: its updates are one and the same, and take a fixed time."""

    pid = 0

    def __init__(self, payload: bytes, note: _Notes) -> None:
        self._payload = payload
        self._note = note

    async def call(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401, ARG002
        match op:
            case "open":
                schema = {"name": "flooded", "version": "1", "schema_hash": SCHEMA.hash}
                return {
                    **schema,
                    "num_examples": 10,
                    "codecs": ["topk-log4", "int8", "float32"],
                    "num_test_examples": 0,
                }
            case "train":
                self._note.began(arguments["base_version"])
                await asyncio.sleep(TRAIN_S)
                return self._trained(**arguments)
            case _:
                return {}

    def _trained(self, *, run_dir: str, counter: int, **_: Any) -> dict[str, Any]:  # noqa: ANN401
        payload_file, residual_file = f"{run_dir}/update-{counter}.bin", f"{run_dir}/residual-{counter}.bin"
        Path(payload_file).write_bytes(self._payload)
        Path(residual_file).write_bytes(b"")
        return {
            "payload_file": payload_file,
            "size": len(self._payload),
            "sha256": hashlib.sha256(self._payload).digest(),
            "residual_file": residual_file,
            "num_examples": 10,
            "train_s": TRAIN_S,
            "metrics": {},
            "evaluation": None,
            "residual_dropped": 0.0,
            "warning": None,
        }

    def kill(self) -> None:
        """There is no process."""

    async def close(self) -> None:
        """Nothing is open."""


class _Notes:
    """Writes a line when the first device begins on a version."""

    def __init__(self) -> None:
        self._newest = -1

    def began(self, version: int) -> None:
        if version > self._newest:
            self._newest = version
            print(f"{time.monotonic():.6f} {version}", flush=True)


async def be_fleet(place: Place) -> None:
    """What the devices' process does, until it is killed: it prints when each version's training begins."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    notes = _Notes()
    services = []
    for number in range(DEVICES):
        change = np.random.default_rng(number).normal(size=PARAMETERS).astype(np.float32)
        payload, _ = encode_update(change, None, SCHEMA, CodecSpec("topk-log4", DENSITY))
        name = device_name(number)
        settings = AgentSettings(
            federation=FEDERATION,
            id=name,
            state_dir=place.root / "devices" / name,
            task="flooded",
            broker=place.settings(name),
        )

        async def start(payload: bytes = payload) -> _Trainer:
            return _Trainer(payload, notes)

        services.append(AgentService(settings, start_child=start))
    await asyncio.gather(*(service.run(asyncio.Event()) for service in services))
