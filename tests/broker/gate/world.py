"""A site in a temporary folder with a real Mosquitto on free ports: prepared, rendered and started as in production."""

from __future__ import annotations

import getpass
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from fedmq_broker import membership
from fedmq_broker.authority import Authority
from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.probe import find_free_port
from fedmq_broker.render import Wanted, find_plugin, render
from fedmq_broker.site import Site
from fedmq_broker.sizing import plan
from fedmq_protocol.access import OPERATOR
from fedmq_protocol.aio import BrokerSettings
from fedmq_protocol.topics import Topics
from tests.broker_fixtures import PATIENCE_S

HOST = "localhost"


@dataclass
class World:
    """One federation's site, and its Mosquitto where it runs."""

    site: Site
    port: int = field(default_factory=lambda: find_free_port("127.0.0.1"))
    password_port: int = field(default_factory=lambda: find_free_port("127.0.0.1"))
    websockets_port: int = field(default_factory=lambda: find_free_port("127.0.0.1"))
    federation: str = "home"
    process: subprocess.Popen[bytes] | None = None

    @property
    def topics(self) -> Topics:
        return Topics(self.federation)

    @property
    def authority(self) -> Authority:
        return Authority.open(self.site.authority.folder)

    @property
    def log(self) -> str:
        return (self.site.folder / "log").read_text(errors="replace")

    def prepare(self) -> list[str]:
        made = membership.prepare(self.site, self.federation, [HOST])
        self.site.mosquitto.data.mkdir(exist_ok=True)
        wanted = Wanted(
            self.federation,
            plan(50, 300_000),
            port=self.port,
            websockets_port=self.websockets_port,
            password_port=self.password_port,
            listen="127.0.0.1",
            user=getpass.getuser(),
            plugin=find_plugin(),
        )
        self.site.mosquitto.configuration.write_text(render(wanted))
        return made

    def start(self) -> None:
        """Start it with what the register says; return once it answers."""
        membership.render_files(self.site)
        program = find_mosquitto()
        assert program is not None
        with (self.site.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-v", "-c", "mosquitto.conf"],
                cwd=self.site.mosquitto.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        # Before it says so, its listeners are open already, and SIGHUP would still end it.
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if self.log.rpartition(" starting")[2].count(" running"):
                return
            time.sleep(0.02)
        raise AssertionError(f"mosquitto did not start: {self.log}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
            self.process = None

    def settings(self, member: str, *, files: Path | None = None, port: int = 0) -> BrokerSettings:
        """How a member comes in by its certificate; `files` has that of another time or authority."""
        folder = self.site.member(member).folder if files is None else files
        return BrokerSettings(
            url=f"mqtts://{HOST}:{port or self.port}",
            ca_file=self.site.authority.ca,
            cert_file=folder / "cert.pem",
            key_file=folder / "key.pem",
            connect_timeout_s=PATIENCE_S / 2,
            reconnect_min_s=0.05,
            reconnect_max_s=0.1,
        )

    def by_password(
        self, member: str, password: str | None = None, *, websockets: bool = False
    ) -> BrokerSettings:
        """How a member comes in by password: its own, or a given one."""
        door = (
            f"wss://{HOST}:{self.websockets_port}" if websockets else f"mqtts://{HOST}:{self.password_port}"
        )
        secret = self.site.member(member).password.read_text().strip() if password is None else password
        return BrokerSettings.model_validate(
            {
                "url": door,
                "ca_file": self.site.authority.ca,
                "username": member,
                "password": secret,
                "connect_timeout_s": PATIENCE_S / 2,
                "reconnect_min_s": 0.05,
                "reconnect_max_s": 0.1,
            }
        )

    @property
    def live(self) -> BrokerSettings:
        return self.settings(OPERATOR)
