"""Thousands of agents over mutual TLS, one Mosquitto, one coordinator: what a round costs, and what it costs whom.

    python benchmarks/fleet_tls.py [--agents 2000] [--few 10] [--rounds 5] [--under-way 400] [--queued N] [--json FILE]

Mosquitto is a site's own: its authority, its certificates, its access rules, its limits. The coordinator is the real
one, in a process of its own, with its journal on disk; only its model host stands on numbers instead of a task. Agents
are light: each has a connection over TLS with a certificate of its own, keys, sessions, signed envelopes, and does with
turns and receipts what the protocol says. They do not train: what they send was encoded beforehand. All share one
process, so what all hear alike is opened once, and what the coordinator signed is not verified.

The bound: the same connections and as many bytes by bare MQTT clients, in the same run. Whoever takes the coordinator's
place there answers each message by one as long as a receipt, and reads neither: as few lines over asyncio as will do
(`bare`), and paho-mqtt as its documentation has it (`paho`).

A round is timed at the agents: from its announcement to the next. The first is left out: it waits for all to join.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.figures import machine
from benchmarks.fleet_agents import BareFleet, Fleet, LightFleet
from benchmarks.fleet_coordinator import FEDERATION
from benchmarks.light_mqtt import Hears, LightClient
from fedmq_broker.membership import enrol, prepare, render_files
from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.probe import find_free_port
from fedmq_broker.render import Wanted, find_plugin, render
from fedmq_broker.site import Site
from fedmq_broker.sizing import plan
from fedmq_coordinator.core.turns import MAX_UNDER_WAY
from fedmq_coordinator.shell.client import Client, NoCoordinatorError
from fedmq_protocol.topics import Topics

HOST: Final = "localhost"
PARAMETERS: Final = 300_000
DENSITY: Final = 0.01
_CONNECTING_AT_ONCE: Final = 20
_PATIENCE_S: Final = 600.0
_DROPPED: Final = "$SYS/broker/publish/messages/dropped"


@dataclass(frozen=True)
class Figures:
    """What rounds of one fleet cost.

    Attributes:
        agents: how many.
        rounds: that were measured.
        round_s: the median.
        slowest_s: the longest.
        update_bytes: of a packet with an update.
        announcement_bytes: of one with a version.
        receipt_bytes: of one with a receipt.
        turns: words of turns in a round.
        most_under_way: updates sent and not answered at one moment.
        broker_cpu_ms: for an update.
        center_cpu_ms: for an update, of the coordinator's process, or of the one that takes its place.
        center_rss: bytes at the end.
        agents_cpu_ms: for an update.
        dropped: messages that the broker says it has dropped since its start.
    """

    agents: int
    rounds: int
    round_s: float
    slowest_s: float
    update_bytes: float
    announcement_bytes: float
    receipt_bytes: float
    turns: float
    most_under_way: int
    broker_cpu_ms: float
    center_cpu_ms: float
    center_rss: int
    agents_cpu_ms: float
    dropped: int


class Broker:
    """A site's Mosquitto on this machine.

    Args:
        folder: where the site is made.
        agents: how many devices are enrolled.
        queued: how many messages it queues for a client; None: as many as the site's limits say.
    """

    def __init__(self, folder: Path, agents: int, queued: int | None) -> None:
        self.site = Site(folder)
        self.port = find_free_port("127.0.0.1")
        self.names = [f"dev-{number:05}" for number in range(agents)]
        prepare(self.site, FEDERATION, [HOST, "127.0.0.1"])
        asyncio.run(enrol(self.site, self.names, live=None))
        render_files(self.site)
        limits = plan(agents, PARAMETERS)
        wanted = Wanted(
            FEDERATION,
            limits,
            port=self.port,
            websockets_port=0,
            password_port=0,
            listen="127.0.0.1",
            user="root",
            plugin=find_plugin(),
        )
        text = render(wanted).replace("\nsys_interval 10\n", "\nsys_interval 1\n")
        if queued is not None:
            text = text.replace(
                f"\nmax_queued_messages {limits.max_queued_messages}\n", f"\nmax_queued_messages {queued}\n"
            )
        self.site.mosquitto.configuration.write_text(text)
        self.site.mosquitto.data.mkdir(exist_ok=True)
        program = find_mosquitto()
        if program is None:
            raise SystemExit("Mosquitto is not installed")
        self.log = folder / "mosquitto.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(  # noqa: S603 - the program that we found
                [program, "-c", self.site.mosquitto.configuration.name],
                cwd=self.site.mosquitto.folder,
                stderr=log,
            )

    def tls(self, member: str) -> ssl.SSLContext:
        """How a member comes in."""
        files = self.site.member(member)
        context = ssl.create_default_context(cafile=str(self.site.authority.ca))
        context.load_cert_chain(files.certificate, files.key)
        return context

    def settings(self, member: str) -> dict[str, str]:
        """The same for a process of its own."""
        files = self.site.member(member)
        return {
            "url": f"mqtts://{HOST}:{self.port}",
            "ca_file": str(self.site.authority.ca),
            "cert_file": str(files.certificate),
            "key_file": str(files.key),
        }

    async def dropped(self) -> int:
        """How many messages it has dropped, by its own count; or how often its log says that it begins to."""
        heard: list[int] = []
        client = await self.connect("@monitor", lambda _, payload: heard.append(int(payload)))
        await client.subscribe([_DROPPED])
        await asyncio.sleep(3.0)
        await client.close()
        return max([0, *heard, self.log.read_text().count("messages are being dropped")])

    async def connect(self, name: str, hears: Hears) -> LightClient:
        """A connection, tried again while the broker is starting."""
        for attempt in range(100):
            try:
                return await LightClient.connect(name, hears, host=HOST, port=self.port, tls=self.tls(name))
            except OSError:
                if attempt == 99 or self.process.poll() is not None:
                    raise
                await asyncio.sleep(0.1)
        raise AssertionError

    async def forget(self) -> None:
        """Clear what a coordinator left for those who come later."""
        client = await self.connect("@coordinator", lambda _topic, _payload: None)
        topics = Topics(FEDERATION)
        for topic in (topics.coordinator_status, topics.announcement, topics.turn):
            client.publish(topic, b"", retain=True)
        await client.subscribe([topics.coordinator_status])
        await client.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@contextlib.contextmanager
def center(role: str, broker: Broker, folder: Path, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is the coordinator, or takes its place."""
    folder.mkdir(exist_ok=True)
    given = folder / "settings.json"
    given.write_text(
        json.dumps(settings | {"broker": broker.settings("@coordinator"), "folder": str(folder)})
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-m", "benchmarks.fleet_coordinator", role, str(given)], stderr=log, stdout=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        print(f"{role}: {(folder / 'log').read_text()[-2000:] or 'done'}", file=sys.stderr)


@contextlib.asynccontextmanager
async def connected(broker: Broker, fleet: Fleet) -> AsyncIterator[None]:
    """All of a fleet's agents, connected and subscribed."""
    few = asyncio.Semaphore(_CONNECTING_AT_ONCE)

    async def join(name: str) -> None:
        async with few:
            agent = fleet.agents[name]
            agent.client = await broker.connect(name, agent.hears)
            await agent.client.subscribe(fleet.topics.device_filters(name))

    await asyncio.gather(*map(join, fleet.agents))
    try:
        yield
    finally:
        await asyncio.gather(*[agent.client.close() for agent in fleet.agents.values()])


class Meter:
    """CPU seconds of the three parties between two moments."""

    def __init__(self, broker: Broker, process: subprocess.Popen[bytes]) -> None:
        self._parties = [psutil.Process(broker.process.pid), psutil.Process(process.pid), psutil.Process()]
        self._before = self._now()

    def _now(self) -> list[float]:
        return [sum(party.cpu_times()[:2]) for party in self._parties]

    def again(self) -> None:
        """From now on."""
        self._before = self._now()

    def spent(self) -> list[float]:
        """Since then: the broker, the center, the agents."""
        return [now - before for now, before in zip(self._now(), self._before, strict=True)]


async def _rounds(broker: Broker, fleet: Fleet, process: subprocess.Popen[bytes], rounds: int) -> Figures:
    """Figures of the rounds after the first, and of the last one's state."""
    meter = Meter(broker, process)
    async with asyncio.timeout(_PATIENCE_S):
        await fleet.reached(2)
        meter.again()
        updates, turns = fleet.num_updates, fleet.num_turns
        await fleet.reached(2 + rounds)
    spent = [1_000 * seconds / (fleet.num_updates - updates) for seconds in meter.spent()]
    times = [later - earlier for earlier, later in zip(fleet.began[1:-1], fleet.began[2:], strict=True)][
        :rounds
    ]
    print(f"{len(fleet.agents)} agents: rounds of {[round(each, 3) for each in times]} s", file=sys.stderr)
    return Figures(
        agents=len(fleet.agents),
        rounds=rounds,
        round_s=statistics.median(times),
        slowest_s=max(times),
        update_bytes=fleet.update_bytes.mean,
        announcement_bytes=fleet.announcement_bytes.mean,
        receipt_bytes=fleet.receipt_bytes.mean,
        turns=(fleet.num_turns - turns) / rounds,
        most_under_way=fleet.most_under_way,
        broker_cpu_ms=spent[0],
        center_cpu_ms=spent[1],
        center_rss=psutil.Process(process.pid).memory_info().rss,
        agents_cpu_ms=spent[2],
        dropped=await broker.dropped(),
    )


async def federation(broker: Broker, folder: Path, agents: int, rounds: int, under_way: int) -> Figures:
    """A coordinator and so many agents."""
    fleet = LightFleet(FEDERATION, broker.names[:agents], parameters=PARAMETERS, density=DENSITY)
    settings = {
        "rounds": rounds + 4,
        "selection": {"min_available_devices": agents, "round_timeout_s": 300.0, "deadline_factor": 0},
        "compression": {"density": DENSITY, "down_density": DENSITY, "coders": (), "code_ms": 0},
        "evaluate_every": 0,
    }
    with center("coordinator", broker, folder, under_way=under_way, parameters=PARAMETERS) as process:
        client = await _client(folder, process)
        async with connected(broker, fleet):
            await fleet.introduce()
            asked = asyncio.create_task(asyncio.to_thread(client.start_run, "numbers", settings=settings))
            figures = await _rounds(broker, fleet, process, rounds)
            await asked
            client.close()
            return figures


async def _client(folder: Path, process: subprocess.Popen[bytes]) -> Client:
    while True:
        try:
            return Client(folder)
        except NoCoordinatorError:
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text()) from None
            await asyncio.sleep(0.1)


async def bare(
    broker: Broker, folder: Path, role: str, options: argparse.Namespace, like: Figures
) -> Figures:
    """As many bytes by clients that read nothing of them."""
    agents, rounds = options.agents, options.rounds
    fleet = BareFleet(FEDERATION, broker.names[:agents], update_bytes=round(like.update_bytes))
    sizes = {"announcement": round(like.announcement_bytes), "receipt": round(like.receipt_bytes)}
    with center(role, broker, folder / role, agents=agents, rounds=rounds + 4, **sizes) as process:
        async with connected(broker, fleet):
            knocking = asyncio.create_task(_knock(fleet))
            try:
                return await _rounds(broker, fleet, process, rounds)
            finally:
                knocking.cancel()


async def _knock(fleet: BareFleet) -> None:
    """Until somebody listens."""
    while not fleet.began:
        await fleet.introduce()
        await asyncio.sleep(2.0)


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--agents", type=int, default=2_000)
    parser.add_argument("--few", type=int, default=10, help="the fleet by which memory is judged")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--under-way", type=int, default=MAX_UNDER_WAY, help="updates admitted at once")
    parser.add_argument(
        "--queued", type=int, help="messages that Mosquitto queues for a client; leaves out the bound"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(json.dumps(measure(options), indent=2))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    raise_file_limit(3 * options.agents + 500)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        broker = Broker(folder / "site", max(options.agents, options.few), options.queued)
        print(f"{options.agents} certificates: {time.perf_counter() - began:.1f} s", file=sys.stderr)
        try:
            few = asyncio.run(
                federation(broker, folder / "few", options.few, options.rounds, options.under_way)
            )
            asyncio.run(broker.forget())
            many = asyncio.run(
                federation(broker, folder / "many", options.agents, options.rounds, options.under_way)
            )
            asyncio.run(broker.forget())
            found: dict[str, Any] = {
                "machine": machine(),
                "options": {name: value for name, value in vars(options).items() if name != "json"},
                "few": asdict(few),
                "many": asdict(many),
                "more_memory_bytes": many.center_rss - few.center_rss,
            }
            if options.queued is None:  # bare clients would meet a smaller limit
                for role in ("bare", "paho"):
                    bound = asyncio.run(bare(broker, folder, role, options, many))
                    found |= {role: asdict(bound), f"round_to_{role}": many.round_s / bound.round_s}
        finally:
            broker.stop()
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


def raise_file_limit(wanted: int) -> None:
    """As many open files as the fleet needs, here and in the processes that are started."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        raise SystemExit(f"{wanted} open files are needed, and {hard} are allowed: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    main()
