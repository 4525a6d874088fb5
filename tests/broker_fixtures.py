"""Brokers and connections for tests, on free ports of the loopback interface; all are gone when the test is."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from fedmq_broker import membership
from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.preparing import Plan, prepare
from fedmq_broker.probe import find_free_port
from fedmq_broker.render import PLUGIN, find_plugin
from fedmq_broker.runner import BrokerKind, RunningBroker, start_broker
from fedmq_broker.service import RunningSite, start_site
from fedmq_broker.site import Site
from fedmq_broker.sizing import plan as limits_for
from fedmq_protocol.access import OPERATOR
from fedmq_protocol.aio import BrokerSettings, Connection, Event, Message

PATIENCE_S = 60.0
"""So long a loaded machine is waited for, by whoever waits for something that must come."""
NO_MOSQUITTO = "mosquitto is not installed (apt-get install mosquitto, or brew install mosquitto)"

Connect: TypeAlias = Callable[..., Coroutine[None, None, Connection]]


def require_mosquitto() -> Path:
    """Where mosquitto is; skips the test where it is not."""
    program = find_mosquitto()
    if program is None:
        pytest.skip(NO_MOSQUITTO)
    return program


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[RunningBroker]:
    """A Mosquitto of this test's own."""
    require_mosquitto()
    folder = tmp_path / "mosquitto"
    with start_broker("mosquitto", port=0, state_dir=folder, start_timeout_s=PATIENCE_S) as broker:
        yield broker


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningBroker]]:
    """Brokers on demand; they end with the test."""
    running: list[RunningBroker] = []

    def start_one(
        kind: BrokerKind = "mosquitto", *, port: int = 0, state_dir: Path | None = None
    ) -> RunningBroker:
        if kind == "mosquitto":
            require_mosquitto()
        folder = state_dir or tmp_path / f"broker-{len(running)}"
        broker = start_broker(kind, port=port, state_dir=folder, start_timeout_s=PATIENCE_S)
        running.append(broker)
        return broker

    yield start_one
    for broker in running:
        broker.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """What makes connections, which end with the test; settings and options go by name."""
    connections: list[Connection] = []

    async def connect_one(url: str, client_id: str, *, wait: bool = True, **options: object) -> Connection:
        own = {"will", "receive_maximum", "rng", "flush_timeout_s"}
        patient = {"url": url, "connect_timeout_s": PATIENCE_S / 2}
        settings = BrokerSettings.model_validate(
            patient | {name: value for name, value in options.items() if name not in own}
        )
        chosen = {name: value for name, value in options.items() if name in own}
        connection = Connection(settings, client_id=client_id, **chosen)  # type: ignore[arg-type]
        connections.append(connection)
        await connection.start(wait=wait, timeout_s=PATIENCE_S)
        return connection

    yield connect_one
    for connection in connections:
        await connection.stop(graceful=False)


async def next_of(events: AsyncIterator[Event], kind: type[Event], *, timeout_s: float = PATIENCE_S) -> Event:
    """The next event of a kind; others are passed over."""
    async with asyncio.timeout(timeout_s):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the stream ended before a {kind.__name__}")


async def next_message(events: AsyncIterator[Event], *, timeout_s: float = PATIENCE_S) -> Message:
    """The next message; what else happens is passed over."""
    event = await next_of(events, Message, timeout_s=timeout_s)
    assert isinstance(event, Message)
    return event


async def silence(
    events: AsyncIterator[Event], probe: Callable[[], Awaitable[None]], marker: str
) -> list[Message]:
    """What arrives before a marker that `probe` publishes: so one sees that nothing came, without sleeping."""
    await probe()
    seen: list[Message] = []
    while (message := await next_message(events)).topic != marker:
        seen.append(message)
    return seen


# ------------------------------------------------------------------------------------- Mosquitto, set up by the test


@dataclass(frozen=True)
class CustomBroker:
    """A Mosquitto with a configuration of the test's own."""

    port: int
    other_port: int
    pid: int
    log_path: Path


@pytest.fixture
def custom_mosquitto(tmp_path: Path) -> Iterator[Callable[[str], CustomBroker]]:
    """Mosquitto with a given configuration, in which `{port}` and `{other_port}` stand for free ports.

    It listens on all of them when it is handed out.
    """
    program = require_mosquitto()
    processes: list[subprocess.Popen[bytes]] = []

    def start_one(text: str) -> CustomBroker:
        port, other_port = find_free_port("127.0.0.1"), find_free_port("127.0.0.1")
        ports = [port, other_port] if "{other_port}" in text else [port]
        config_path = tmp_path / f"mosquitto-{port}.conf"
        text = text.replace("{port}", str(port)).replace("{other_port}", str(other_port))
        config_path.write_text(f"user {getpass.getuser()}\n{text}\n")
        log_path = config_path.with_suffix(".log")
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [program, "-v", "-c", config_path], stdout=log, stderr=subprocess.STDOUT
            )
        processes.append(process)
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                for each in ports:
                    socket.create_connection(("127.0.0.1", each), timeout=PATIENCE_S).close()
                return CustomBroker(port, other_port, process.pid, log_path)
            time.sleep(0.02)
        raise AssertionError(f"mosquitto did not start: {log_path.read_text()}")

    yield start_one
    for process in processes:
        process.terminate()
        process.wait(PATIENCE_S)


# ------------------------------------------------------------------------------------- a site, as in production


@dataclass(frozen=True)
class SiteBroker:
    """A federation's own Mosquitto that runs: TLS, certificates, rights, limits, as `fedmq broker init` makes them."""

    site: Site
    plan: Plan
    running: RunningSite

    async def enrol(self, *names: str, password: bool = False) -> None:
        """Let devices in while it runs."""
        await membership.enrol(self.site, names, live=self.settings(OPERATOR), password=password)

    def settings(self, member: str, **other: object) -> BrokerSettings:
        """How a member comes in, by its certificate or, where it has none, its password."""
        files = self.site.member(member)
        own: dict[str, object] = {
            "ca_file": self.site.authority.ca,
            "connect_timeout_s": PATIENCE_S / 2,
            "reconnect_min_s": 0.05,
            "reconnect_max_s": 0.5,
        }
        if files.certificate.exists():
            own |= {
                "url": f"mqtts://localhost:{self.plan.port}",
                "cert_file": files.certificate,
                "key_file": files.key,
            }
        else:
            own |= {
                "url": f"mqtts://localhost:{self.plan.password_port}",
                "username": member,
                "password_file": files.password,
            }
        return BrokerSettings.model_validate(own | other)


def _elsewhere(work: Coroutine[None, None, object]) -> None:
    """Run a coroutine to its end in another thread: this one's loop may be running."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


MakeSite: TypeAlias = Callable[..., SiteBroker]


@pytest.fixture
def site_broker(tmp_path: Path) -> Iterator[MakeSite]:
    """What sets up a site in the test's folder, enrols devices, and starts its Mosquitto in half a second.

    By name: `federation`, `devices` and `parameters` (for the limits), `hosts`, `user` (whom Mosquitto becomes).
    """
    require_mosquitto()
    if find_plugin() != PLUGIN and not Path(find_plugin()).exists():
        pytest.skip("Mosquitto's dynamic security plugin is not installed")
    with contextlib.ExitStack() as stack:

        def start_one(
            *names: str,
            federation: str = "home",
            devices: int = 50,
            parameters: int = 300_000,
            hosts: tuple[str, ...] = ("localhost",),
            user: str | None = None,
        ) -> SiteBroker:
            site = Site(tmp_path / f"site-{federation}")
            port, websockets_port, password_port = (find_free_port("127.0.0.1") for _ in range(3))
            plan = Plan(
                federation,
                hosts,
                limits_for(devices, parameters),
                port=port,
                websockets_port=websockets_port,
                password_port=password_port,
                listen="127.0.0.1",
                user=user or getpass.getuser(),
            )
            prepare(site, plan, running=False)
            if names:
                _elsewhere(membership.enrol(site, names, live=None))
            return SiteBroker(site, plan, stack.enter_context(start_site(site, timeout_s=PATIENCE_S)))

        yield start_one


# ------------------------------------------------------------------------------------- between client and broker


class Proxy:
    """A TCP proxy that counts what passes, and may swallow what a client of MQTT 5 says.

    Attributes:
        up_bytes: from clients to the broker, over all connections.
        down_bytes: from the broker to clients.
        connections: how many were made.
        levels: of the protocol, that their CONNECTs asked for; 0 where that cannot be told.
        mute_version: a CONNECT of this protocol level gets no answer, as with some brokers.
        flowing: while this is cleared, nothing from the broker is passed on, nor that it hung up.
    """

    def __init__(self, target_port: int) -> None:
        self.up_bytes = self.down_bytes = self.connections = 0
        self.levels: list[int] = []
        self.mute_version: int | None = None
        self.flowing = asyncio.Event()
        self._came = asyncio.Event()
        self.flowing.set()
        self._target_port = target_port
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @property
    def port(self) -> int:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        assert isinstance(port, int)
        return port

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection, both ways, without a farewell."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def passed(self, up_bytes: int) -> None:
        """Return once so many bytes have come from clients."""
        async with asyncio.timeout(PATIENCE_S):
            while self.up_bytes < up_bytes:
                self._came.clear()
                await self._came.wait()

    async def settled(self) -> None:
        """Return once every connection has ended and all that was sent has passed."""
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.append(task)
        self._writers.append(writer)
        first = await reader.read(65536)
        self.up_bytes += len(first)
        name = first[:16].find(b"MQTT")
        self.levels.append(int.from_bytes(first[name + 4 : name + 5]) if name >= 0 else 0)
        if self.mute_version is not None and b"MQTT" + bytes([self.mute_version]) in first[:16]:
            await reader.read()
            writer.close()
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers.append(to_writer)
        to_writer.write(first)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if up:
                        self.up_bytes += len(data)
                        self._came.set()
                    else:
                        await self.flowing.wait()
                        self.down_bytes += len(data)
                    sink.write(data)
                    await sink.drain()
            if not up:
                await self.flowing.wait()
            with contextlib.suppress(OSError):
                sink.close()

        await asyncio.gather(pump(reader, to_writer, up=True), pump(to_reader, writer, up=False))


@pytest.fixture
async def proxy_to() -> AsyncIterator[Callable[[int], Awaitable[Proxy]]]:
    """What puts a proxy before a broker's port."""
    proxies: list[Proxy] = []

    async def start_one(port: int) -> Proxy:
        proxy = Proxy(port)
        await proxy.start()
        proxies.append(proxy)
        return proxy

    yield start_one
    for proxy in proxies:
        await proxy.stop()
