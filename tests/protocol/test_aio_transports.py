"""TLS and WebSockets, and that the traffic we tell is what a proxy on the wire counts."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedmq_protocol.aio import BrokerSettings, Connected, Connection, Disconnected, Traffic, Will
from fedmq_protocol.errors import ConnectionFailedError
from tests.broker_fixtures import PATIENCE_S, Connect, CustomBroker, Proxy, next_message, next_of

CustomMosquitto = Callable[[str], CustomBroker]
ProxyTo = Callable[[int], Awaitable[Proxy]]

# Mosquitto 2.0.11 does not start with a listener for WebSockets alone.
WEBSOCKETS = "protocol websockets\nlistener {other_port} 127.0.0.1\n"

pytestmark = pytest.mark.mosquitto


@dataclass(frozen=True)
class Certificates:
    """An authority, and a certificate each for the broker (for 127.0.0.1 alone) and a client."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    now = dt.datetime.now(dt.UTC)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])

    def issue(name: str, key: ec.EllipticCurvePrivateKey, *, authority: bool) -> None:
        subject = authority_name if authority else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        certificate = builder.sign(authority_key, hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    issue("authority", authority_key, authority=True)
    issue("broker", ec.generate_private_key(ec.SECP256R1()), authority=False)
    issue("client", ec.generate_private_key(ec.SECP256R1()), authority=False)
    return Certificates(folder)


def tls_config(certificates: Certificates, *, mutual: bool = False, websockets: bool = False) -> str:
    return "\n".join(
        [
            "listener {port} 127.0.0.1",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            f"cafile {certificates.path('authority.pem')}",
            f"certfile {certificates.path('broker.pem')}",
            f"keyfile {certificates.path('broker.key')}",
            f"require_certificate {str(mutual).lower()}",
            WEBSOCKETS if websockets else "",
        ]
    )


PLAIN = "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"


# ------------------------------------------------------------------------------------- TLS


async def test_tls_carries_large_messages_both_ways(
    custom_mosquitto: CustomMosquitto, connect: Connect, certificates: Certificates
) -> None:
    broker = custom_mosquitto(tls_config(certificates))
    connection = await connect(
        f"mqtts://127.0.0.1:{broker.port}", "a", ca_file=certificates.path("authority.pem")
    )
    await connection.subscribe(["m"])
    events = connection.events()
    payloads = [bytes([number]) * 120_000 for number in range(20)]
    async with asyncio.TaskGroup() as group:
        for payload in payloads:
            group.create_task(connection.publish("m", payload))
        received = [(await next_message(events)).payload for _ in payloads]
    assert received == payloads


async def test_the_will_does_not_fire_after_taking_leave_over_tls(
    custom_mosquitto: CustomMosquitto, connect: Connect, certificates: Certificates
) -> None:
    broker = custom_mosquitto(tls_config(certificates))
    url, ca_file = f"mqtts://127.0.0.1:{broker.port}", certificates.path("authority.pem")
    watcher = await connect(url, "w", ca_file=ca_file)
    await watcher.subscribe(["will"])
    for graceful in (True, False):
        device = await connect(url, "d", ca_file=ca_file, will=Will("will", b"%d" % graceful))
        await device.stop(graceful=graceful)
    assert (await next_message(watcher.events())).payload == b"0"


async def test_a_second_client_of_the_same_name_is_named_over_tls(
    custom_mosquitto: CustomMosquitto, connect: Connect, certificates: Certificates
) -> None:
    """The broker ends the older one's stream in good form: that is no silence."""
    broker = custom_mosquitto(tls_config(certificates))
    url, ca_file = f"mqtts://127.0.0.1:{broker.port}", certificates.path("authority.pem")
    first = await connect(url, "twin", ca_file=ca_file)
    await connect(url, "twin", ca_file=ca_file, reconnect_min_s=20)
    ended = await next_of(first.events(), Disconnected)
    assert isinstance(ended, Disconnected)
    assert "'twin'" in ended.reason


async def test_a_client_certificate(
    custom_mosquitto: CustomMosquitto, connect: Connect, certificates: Certificates
) -> None:
    broker = custom_mosquitto(tls_config(certificates, mutual=True))
    url, ca_file = f"mqtts://127.0.0.1:{broker.port}", certificates.path("authority.pem")
    connection = await connect(
        url,
        "a",
        ca_file=ca_file,
        cert_file=certificates.path("client.pem"),
        key_file=certificates.path("client.key"),
    )
    assert connection.is_connected
    without = Connection(
        BrokerSettings(url=url, ca_file=ca_file, connect_timeout_s=PATIENCE_S / 2), client_id="b"
    )
    with pytest.raises(ConnectionFailedError, match=r"client certificate|closes? the connection"):
        await without.start(wait=True)


async def test_failures_of_tls_name_the_fix(
    custom_mosquitto: CustomMosquitto, certificates: Certificates
) -> None:
    tls = custom_mosquitto(tls_config(certificates)).port
    plain = custom_mosquitto(PLAIN).port
    ca_file = certificates.path("authority.pem")
    expected = [
        (BrokerSettings(url=f"mqtts://127.0.0.1:{tls}"), "is not trusted .*: set ca_file to"),
        (BrokerSettings(url=f"mqtts://localhost:{tls}", ca_file=ca_file), "use the name in the certificate"),
        (BrokerSettings(url=f"mqtts://127.0.0.1:{plain}", ca_file=ca_file), "TLS"),
        (BrokerSettings(url=f"mqtt://127.0.0.1:{tls}"), "is it an MQTT port, and without TLS"),
        (
            BrokerSettings(url=f"mqtts://127.0.0.1:{tls}", ca_file=Path("/none")),
            "ca_file '/none' cannot be used",
        ),
    ]
    for settings, text in expected:
        patient = settings.model_copy(update={"connect_timeout_s": PATIENCE_S / 2})
        connection = Connection(patient, client_id="a")
        with pytest.raises(ConnectionFailedError, match=text):
            await connection.start(wait=True)
    unverified = Connection(BrokerSettings(url=f"mqtts://localhost:{tls}", tls_insecure=True), client_id="a")
    await unverified.start(wait=True, timeout_s=PATIENCE_S)
    await unverified.stop()


# ------------------------------------------------------------------------------------- WebSockets


@pytest.mark.parametrize("secure", [False, True])
async def test_websockets(
    custom_mosquitto: CustomMosquitto, connect: Connect, certificates: Certificates, *, secure: bool
) -> None:
    text = tls_config(certificates, websockets=True) if secure else PLAIN + WEBSOCKETS
    broker = custom_mosquitto(text)
    connection = await connect(
        f"{'wss' if secure else 'ws'}://127.0.0.1:{broker.port}/mqtt",
        "a",
        ca_file=certificates.path("authority.pem") if secure else None,
    )
    await connection.subscribe(["m"])
    events = connection.events()
    for size in (0, 1, 125, 126, 3_000, 65_535, 65_536, 120_000):
        payload = bytes(number % 251 for number in range(size))
        await connection.publish("m", payload)
        assert (await next_message(events)).payload == payload


async def test_a_port_without_websockets_is_named(custom_mosquitto: CustomMosquitto) -> None:
    broker = custom_mosquitto(PLAIN)
    settings = BrokerSettings(url=f"ws://127.0.0.1:{broker.port}", connect_timeout_s=PATIENCE_S / 2)
    connection = Connection(settings, client_id="a")
    with pytest.raises(ConnectionFailedError, match="does not accept WebSockets at /mqtt"):
        await connection.start(wait=True)


# ------------------------------------------------------------------------------------- traffic


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
async def test_the_traffic_is_what_a_proxy_counts(
    custom_mosquitto: CustomMosquitto,
    connect: Connect,
    certificates: Certificates,
    proxy_to: ProxyTo,
    scheme: str,
) -> None:
    websockets, secure = scheme.startswith("ws"), scheme.endswith("s") and scheme != "ws"
    text = (
        tls_config(certificates, websockets=websockets)
        if secure
        else PLAIN + (WEBSOCKETS if websockets else "")
    )
    proxy = await proxy_to(custom_mosquitto(text).port)
    connection = await connect(
        f"{scheme}://127.0.0.1:{proxy.port}",
        "a",
        ca_file=certificates.path("authority.pem") if secure else None,
        reconnect_min_s=0.01,
        will=Will("will", b"x" * 100),
        flush_timeout_s=PATIENCE_S,  # what the broker says at last is counted, too
    )
    await connection.subscribe(["m"])
    events = connection.events()
    await next_of(events, Connected)

    async def some_traffic() -> None:
        for size in (0, 10, 1_000, 100_000):
            await connection.publish("m", bytes(size))
            (await next_message(events)).ack()
        await connection.publish("n", b"")  # acknowledged, so all before it has left

    await some_traffic()
    await proxy.passed(connection.traffic.bytes_sent)
    proxy.cut()  # the count goes on over a reconnection
    await next_of(events, Disconnected)
    await next_of(events, Connected)
    await some_traffic()
    await connection.stop()
    await proxy.settled()
    assert connection.traffic == Traffic(proxy.up_bytes, proxy.down_bytes)
    assert proxy.up_bytes > 202_020
