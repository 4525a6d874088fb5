"""What `fedmq broker monitor` and `exporter` have in common: broker and coordinator, watched side by side."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmq.tables import CoordinatorTable, FederationTable, MosquittoTable, broker_settings, read, site_of
from fedmq_broker.site import Site
from fedmq_broker.sizing import plan
from fedmq_broker.watching.certificates import expiries, revoked
from fedmq_broker.watching.limits import read_limits
from fedmq_broker.watching.picture import CoordinatorPicture, DevicePicture, Picture
from fedmq_broker.watching.process import resident_bytes
from fedmq_broker.watching.reader import PROBE_EVERY_S, Reader
from fedmq_broker.watching.watch import Watch
from fedmq_protocol.access import MONITOR
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import FedmqError, UsageError
from fedmq_protocol.topics import Topics

_log = logging.getLogger(__name__)

_ASK_EVERY_S: Final = 2.0
_REST: Final = 10.0
_FILES_EVERY_S: Final = 300.0


@dataclass(frozen=True)
class Watched:
    """What is watched.

    Attributes:
        federation: its name.
        broker: how to reach the broker.
        state_dir: of the coordinator, where its API is found.
        site: of the federation's own Mosquitto; None where the broker is another.
        mosquitto_conf: the configuration that the broker runs, for its limits; else the site's.
        planned_bytes: memory that the broker's process was planned to take at most.
    """

    federation: str
    broker: BrokerSettings
    state_dir: Path
    site: Site | None = None
    mosquitto_conf: Path | None = None
    planned_bytes: int | None = None

    @property
    def limits(self) -> dict[str, float]:
        """What the broker was configured to bear, as far as its configuration is at hand."""
        path = self.mosquitto_conf
        if path is None and self.site is not None:
            path = self.site.mosquitto.configuration
        planned = {} if self.planned_bytes is None else {"resident_bytes": float(self.planned_bytes)}
        return planned if path is None else read_limits(path) | planned


class Watching:
    """Watches until it is cancelled.

    Args:
        watched: what.
        ask_every_s: how often the coordinator is asked.
        probe_every_s: how often a probe goes through the broker.
    """

    def __init__(
        self, watched: Watched, *, ask_every_s: float = _ASK_EVERY_S, probe_every_s: float = PROBE_EVERY_S
    ) -> None:
        self._watched = watched
        self._ask_every_s = ask_every_s
        self._watch = Watch(
            Topics(watched.federation),
            address=watched.broker.shown_url,
            limits=watched.limits,
        )
        self._reader = Reader(watched.broker, self._watch, clock=time.monotonic, probe_every_s=probe_every_s)
        self._asked = asyncio.Event()
        self._said = ""

    def picture(self) -> Picture:
        """Everything as it is now."""
        if self._watched.site is not None:
            self._watch.resident_bytes = resident_bytes(self._watched.site.mosquitto.pid)
        return self._watch.picture(now=time.monotonic(), wall=time.time())

    async def settled(self, timeout_s: float) -> None:
        """Return once broker and coordinator have been heard, or are known not to answer, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._reader.settled.wait()
                await self._asked.wait()
        except TimeoutError:
            pass

    async def run(self) -> None:
        """Watch, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reader.run(), name="broker")
            tasks.create_task(self._ask_coordinator(), name="coordinator")
            tasks.create_task(self._look_at_files(), name="files")

    async def _ask_coordinator(self) -> None:
        while True:
            began = time.monotonic()
            try:
                told = await asyncio.to_thread(_ask, self._watched.state_dir)
            except FedmqError as error:
                self._watch.coordinator_silent(str(error), now=time.monotonic())
                self._say(logging.WARNING, f"coordinator: {error}")
            else:
                now = time.monotonic()
                self._watch.coordinator_told(*told, now=now)
                self._say(logging.INFO, "the coordinator answers")
            self._asked.set()
            # A fleet of many thousands takes the coordinator a while to tell of: it has other things to do.
            await asyncio.sleep(max(self._ask_every_s, _REST * (time.monotonic() - began)))

    def _say(self, level: int, text: str) -> None:
        """Once, however often it is found."""
        if text != self._said:
            self._said = text
            _log.log(level, "%s", text)

    async def _look_at_files(self) -> None:
        """Certificates are renewed, and limits raised, while we run."""
        while True:
            register = None if self._watched.site is None else self._watched.site.authority.register
            before = _stamp(register)  # what changes while it is read is read once more
            if self._watched.site is not None:
                self._watch.certificates = await asyncio.to_thread(expiries, self._watched.site)
                self._watch.revoked = await asyncio.to_thread(revoked, self._watched.site)
            self._watch.limits = self._watched.limits
            await self._changed(register, before)

    async def _changed(self, register: Path | None, before: int | None) -> None:
        """Return once a member came or went, or after a while."""
        until = time.monotonic() + _FILES_EVERY_S
        while _stamp(register) == before and time.monotonic() < until:  # noqa: ASYNC110 - a file is looked at
            await asyncio.sleep(self._ask_every_s)


def _stamp(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_mtime_ns
    except OSError:
        return None


def _ask(state_dir: Path) -> tuple[CoordinatorPicture, list[DevicePicture]]:
    try:
        from fedmq import coordinator_picture
    except ImportError:  # a machine that has the broker alone
        raise UsageError("its API is not asked: fedmq[coordinator] is not installed here") from None
    return coordinator_picture.ask(state_dir)


# ------------------------------------------------------------------------------------------- from the command line


def watched_by(
    config_path: Path | None = None,
    broker_url: str | None = None,
    federation: str | None = None,
    state_dir: Path | None = None,
    mosquitto_conf: Path | None = None,
) -> Watched:
    """What the options of a verb name.

    Raises:
        ConfigError: a setting is wrong, or the site has no certificate for the monitor.
    """
    configuration = read(
        config_path,
        flags={
            "broker.url": ("--broker", broker_url),
            "federation.name": ("--federation", federation),
            "coordinator.state_dir": ("--state-dir", state_dir),
        },
    )
    own = configuration.gives("mosquitto") and not configuration.gives("broker", "url")
    mosquitto = configuration.table("mosquitto", MosquittoTable)
    return Watched(
        federation=configuration.table("federation", FederationTable).name,
        broker=broker_settings(configuration, MONITOR),
        state_dir=configuration.table("coordinator", CoordinatorTable).state_dir,
        site=site_of(configuration) if own else None,
        mosquitto_conf=mosquitto_conf,
        planned_bytes=plan(mosquitto.devices, mosquitto.parameters).resident_bytes if own else None,
    )


def exporter_file(watched: Watched) -> Path | None:
    """Where an exporter of this site says that it listens.

    On a site the monitor is one member with one session, so that a live view beside an exporter would push that out:
    it asks the exporter instead.
    """
    return None if watched.site is None else watched.site.folder / "exporter.json"
