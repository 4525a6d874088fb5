"""A board whose clock is wrong: TLS refuses a certificate that is not valid yet. It says so, and joins later."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedmq_broker.runner import RunningBroker
from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.shell.service import AgentService
from fedmq_protocol.broker_settings import BrokerSettings
from tests.edge_agent.shell.fake_child import FakeChild

pytestmark = pytest.mark.mosquitto

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def authority(folder: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """The certificate of whoever signs."""
    made = (
        x509.CertificateBuilder()
        .subject_name(named("authority"))
        .issuer_name(named("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 30 * DAY)
        .not_valid_after(NOW + 30 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "ca.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def certificate(folder: Path, signer: ec.EllipticCurvePrivateKey, *, begins: dt.datetime) -> Path:
    """A server's, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(named("broker"))
        .issuer_name(named("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(NOW + 30 * DAY)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{begins:%Y%m%d}.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextlib.asynccontextmanager
async def tls_before(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """TLS in front of a broker that has none; its port."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_it_says_that_its_clock_is_behind_and_joins_when_that_is_set(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    """In place of its clock, the certificate moves: for TLS that is the same."""
    key, began = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    tomorrow, yesterday = (certificate(tmp_path, key, begins=NOW + days * DAY) for days in (1, -1))
    trusted = authority(tmp_path, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tomorrow)
    port = int(mosquitto.url.rpartition(":")[2])
    async with tls_before(port, context) as tls_port:
        broker = BrokerSettings(
            url=f"mqtts://127.0.0.1:{tls_port}",
            ca_file=trusted,
            reconnect_min_s=0.05,
            reconnect_max_s=0.3,
            connect_timeout_s=30.0,
        )
        settings = AgentSettings(id="dev-1", state_dir=tmp_path / "dev-1", task="unused.py", broker=broker)

        async def start_child() -> FakeChild:
            return FakeChild()

        service, stop = AgentService(settings, start_child=start_child), asyncio.Event()
        running = asyncio.create_task(service.run(stop))
        async with asyncio.timeout(60):
            while "not yet valid" not in service.agent.waiting(now=0.0):  # noqa: ASYNC110 - what a person would read
                await asyncio.sleep(0.01)
        said = service.agent.waiting(now=0.0)
        days = {
            f"{moment:%Y-%m-%d}" for moment in (began, dt.datetime.now(dt.UTC))
        }  # it may be about midnight
        assert any(f"this machine's clock shows {day}" in said for day in days)
        assert "tried again" in said
        context.load_cert_chain(yesterday)
        async with asyncio.timeout(60):
            while service.agent.session is None:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)
        stop.set()
        await running
