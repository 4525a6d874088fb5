"""A whole federation of real processes: Mosquitto, `fedmq coordinator start`, `fedmq agent start`, and their trainers.

Each participant reaches the broker by a door of its own. Where the machine lends them (`ground`), each device has a
network of its own, and coordinator and devices have small disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

from fedmq.demo.child import command
from fedmq_broker import guard
from fedmq_broker.mosquitto import LocalConfig, find_mosquitto, mosquitto_version, render_local_config
from fedmq_broker.probe import answers_mqtt, find_free_port
from fedmq_coordinator.shell.client import Client
from fedmq_edge_agent.trainer.client import nursery_command
from tests.chaos import ground
from tests.chaos.actors import Actor, children
from tests.chaos.proxy import Door
from tests.chaos.witness import COORDINATOR, Name, Witness

FEDERATION: Final = "chaos"
RUN: Final = "chaos"
TASK: Final = str(Path(__file__).with_name("task.py"))
ROOT: Final = Path(__file__).parents[2]
_PACKET_BYTES: Final = 4_096
"""Small, so that snapshots, deltas and some updates need several."""
_LOOK_S: Final = 0.05
_DISK_BYTES: Final = 256 << 20

EXACT: Final[dict[str, Any]] = {
    "mode": "fedasync",
    "strategy": {"alpha": 0.5, "server_lr": 0.5, "staleness": "constant"},
    "compression": {"up": "topk-int8", "density": 0.5, "down": "float32", "snapshot": "float32"},
}
"""All arithmetic is in whole multiples of powers of two: the model is the sum of the updates, exactly, in any order."""
USUAL: Final[dict[str, Any]] = {
    "mode": "fedbuff",
    "strategy": {"buffer_size": 3},
    "compression": {"up": "topk-log4", "density": 0.8, "down": "topk-log4", "down_density": 0.1},
}
SYNC: Final[dict[str, Any]] = {
    "mode": "sync",
    "compression": {"up": "topk-int8", "density": 0.5, "down": "topk-log4", "down_density": 0.1},
}
PROFILES: Final = {"exact": EXACT, "usual": USUAL, "sync": SYNC}


@dataclass
class Stage:
    """What stands while a chaos run lasts.

    Attributes:
        folder: where everything lies.
        devices: how many agents there are at first.
        profile: of the run; a name in `PROFILES`.
        persistent: whether Mosquitto saves what it retains.
        train_s: the longest that a training takes.
        keepalive_s: of every connection; three times as long an acknowledgement may take.
    """

    folder: Path
    devices: int = 4
    profile: str = "exact"
    persistent: bool = False
    train_s: float = 0.6
    keepalive_s: int = 5
    actors: dict[str, Actor] = field(default_factory=dict)
    doors: dict[str, Door] = field(default_factory=dict)
    networks: dict[str, ground.Network] = field(default_factory=dict)
    disks: dict[str, ground.SmallDisk] = field(default_factory=dict)
    witness: Witness = field(default_factory=lambda: Witness(FEDERATION))
    broker_port: int = 0

    @property
    def state_dir(self) -> Path:
        """The coordinator's."""
        return self.folder / COORDINATOR

    def device_dir(self, device: str) -> Path:
        """The state folder of a device."""
        return self.folder / device

    @property
    def device_names(self) -> list[str]:
        return [name for name in self.actors if name.startswith("dev-")]

    # ------------------------------------------------------------------------------------------ building it

    async def open(self) -> None:
        """Build everything, start it, and begin the run; returns once a version is there."""
        (self.folder / "tmp").mkdir(parents=True)
        ground.begin()
        self._add_nursery()
        self._add_broker()
        await self._add_coordinator()
        for number in range(1, self.devices + 1):
            await self.add_device(number)
        for actor in self.actors.values():
            actor.start()
        await self.until((self.state_dir / "api.json").exists, 180)
        with Client(self.state_dir) as client:
            await asyncio.to_thread(client.start_run, TASK, name=RUN, settings=self._settings())
        self.witness.on_accepted = Ledger(self.state_dir / "journal.sqlite", self.witness.complaints).check

    def _settings(self) -> dict[str, Any]:
        common: dict[str, Any] = {
            "rounds": 1_000_000,
            "seed": 7,
            "evaluate_every": 0,
            "federated_evaluation": False,
            "selection": {"round_timeout_s": 60.0, "min_available_devices": 1},
            "strategy": {"max_norm_ratio": 1e6, "max_staleness": 30, "max_examples_ratio": 1e6},
            "compression": {"residual_cap": 1e6},
        }
        for table, value in PROFILES[self.profile].items():
            common[table] = common.get(table, {}) | value if isinstance(value, dict) else value
        return common

    def _actor(self, name: str, command: list[str]) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
        environment["TMPDIR"] = str(self.folder / "tmp")
        parts = [ROOT, *(ROOT / part for part in ("protocol", "broker", "coordinator", "edge_agent"))]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, parts))
        self.actors[name] = Actor(name, command, self.folder / f"{name}.log", environment, self.folder)

    def _add_nursery(self) -> None:
        _, _, module, *arguments = nursery_command(self.folder / "nursery.socket", preload=TASK)
        self._actor("nursery", command(module, *arguments))

    def _add_broker(self) -> None:
        program = find_mosquitto()
        assert program is not None, "the caller has looked"
        self.broker_port = find_free_port("127.0.0.1")
        saved = self.folder / "broker"
        saved.mkdir()
        config = LocalConfig(
            port=self.broker_port,
            state_dir=saved if self.persistent else None,
            max_packet_bytes=_PACKET_BYTES,
            user=getpass.getuser(),
        )
        path = self.folder / "mosquitto.conf"
        path.write_text(render_local_config(config, mosquitto_version(program)))
        guarded = [
            sys.executable,
            "-I",
            "-S",
            str(guard.__file__),
            str(os.getpid()),
            str(program),
            "-c",
            str(path),
        ]
        self._actor("broker", guarded)

    def _add_disk(self, name: str, folder: Path) -> None:
        if ground.is_inside():
            self.disks[name] = ground.SmallDisk(folder, _DISK_BYTES)

    async def _door(self, name: str, host: str) -> str:
        door = self.doors[name] = Door(name, self.broker_port, self.witness.heard)
        await door.open(host)
        return f"mqtt://{host}:{door.port}"

    async def _add_coordinator(self) -> None:
        self._add_disk(COORDINATOR, self.state_dir)
        await self.add_coordinator(COORDINATOR, self.state_dir)

    async def add_coordinator(self, name: str, state_dir: Path) -> Actor:
        """Make a coordinator on a folder: the federation's own, or a second one."""
        tables = {
            "federation": {"name": FEDERATION},
            "broker": self._broker_table(await self._door(name, "127.0.0.1")),
            "coordinator": {"state_dir": str(state_dir), "listen": "127.0.0.1:0"},
            "trainer": {"nursery": str(self.folder / "nursery.socket")},
        }
        path = self.folder / f"{name}.toml"
        path.write_text(_toml(tables))
        self._actor(name, command("fedmq", "coordinator", "start", "--config", str(path)))
        return self.actors[name]

    async def add_device(self, number: int) -> Actor:
        """Make one more device; odd ones send narrow updates, even ones wide ones."""
        name, host = f"dev-{number}", "127.0.0.1"
        if ground.is_inside():
            network = self.networks[name] = ground.Network(number)
            host = network.gateway
        self._add_disk(name, self.device_dir(name))
        tables = {
            "federation": {"name": FEDERATION},
            "broker": self._broker_table(await self._door(name, host)),
            "device": {"id": name, "state_dir": str(self.device_dir(name)), "task": TASK},
            "device.data": {
                "ledger": str(self.ledger(name)),
                "train_s": self.train_s,
                "wide": number % 2 == 0,
            },
            "trainer": {"nursery": str(self.folder / "nursery.socket")},
        }
        path = self.folder / f"{name}.toml"
        path.write_text(_toml(tables))
        start = command("fedmq", "agent", "start", "--config", str(path))
        self._actor(name, self.networks[name].command(start) if name in self.networks else start)
        return self.actors[name]

    def ledger(self, device: str) -> Path:
        """Where a device's trainings are noted."""
        return self.folder / f"{device}.ledger"

    def _broker_table(self, url: str) -> dict[str, Any]:
        ack_timeout_s = 3.0 * self.keepalive_s
        return {
            "url": url,
            "keepalive_s": self.keepalive_s,
            "ack_timeout_s": ack_timeout_s,
            "reconnect_max_s": 4.0,
        }

    # ------------------------------------------------------------------------------------------ looking at it

    async def until(self, true: Callable[[], bool], within_s: float) -> float:
        """Wait for something; how long it took.

        Raises:
            TimeoutError: it did not come true in time.
        """
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > within_s:
                raise TimeoutError
            await asyncio.sleep(_LOOK_S)
        return time.monotonic() - began

    def trainers(self) -> list[int]:
        """The process ids of all trainer children."""
        nursery = self.actors["nursery"]
        return children(nursery.pid) if nursery.state != "down" else []

    @property
    def num_accepted(self) -> int:
        return len(self.witness.accepted_at)

    def broker_answers(self) -> bool:
        """Whether clients can connect."""
        return answers_mqtt("127.0.0.1", self.broker_port)

    # ------------------------------------------------------------------------------------------ the end of it

    def mend(self) -> None:
        """Lift every fault; start whatever is down."""
        for door in self.doors.values():
            door.mend()
        for network in self.networks.values():
            network.mend()
        for disk in self.disks.values():
            disk.empty()
        for actor in self.actors.values():
            actor.go_on()
            if actor.state == "down":
                actor.start()

    async def end(self) -> dict[str, int | None]:
        """Let everybody end in order; their exit codes, None for who had to be killed."""
        codes: dict[str, int | None] = {}
        others = [name for name in self.actors if name not in {*self.device_names, "nursery", "broker"}]
        for name in [*self.device_names, *others, "nursery", "broker"]:
            if self.actors[name].state != "down":
                codes[name] = await asyncio.to_thread(self.actors[name].end)
        return codes

    async def close(self) -> None:
        """Leave nothing behind but the folder."""
        for actor in self.actors.values():
            actor.kill()
        for door in self.doors.values():
            await door.close()
        for network in self.networks.values():
            network.close()

    def unmount(self) -> None:
        """Take the small disks away, with what is on them."""
        for disk in self.disks.values():
            with contextlib.suppress(OSError):
                disk.close()


class Ledger:
    """Looks into the journal beside the running coordinator: a receipt's fact must be there before the receipt is.

    It reads the tables themselves, so that it takes nothing over from the code that writes them.
    """

    def __init__(self, path: Path, complaints: list[str]) -> None:
        self._path = path
        self._complaints = complaints
        self._last = 0
        self._accepted: set[Name] = set()

    def check(self, name: Name) -> None:
        """A receipt `accepted` is about to leave."""
        try:
            self._read()
        except sqlite3.Error:  # the disk may be full by our own doing; the audit looks again
            return
        if name not in self._accepted:
            self._complaints.append(f"{name}: a receipt left before its fact was in the journal")

    def _read(self) -> None:
        with contextlib.closing(
            sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=5)
        ) as journal:
            (newest,) = journal.execute("SELECT max(seq) FROM facts").fetchone()
            if newest < self._last:
                self._complaints.append(f"the journal went back from fact {self._last} to {newest}")
            rows = journal.execute(
                "SELECT seq, body FROM facts WHERE seq > ? AND kind = 'UpdateAccepted' ORDER BY seq",
                (self._last,),
            )
            for _, body in rows:
                fact = msgpack.unpackb(body)
                self._accepted.add((fact["device"], fact["run"], fact["counter"]))
            self._last = max(self._last, newest)


def _toml(tables: dict[str, dict[str, Any]]) -> str:
    """Tables of text, numbers and truth; JSON writes these as TOML does."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"
