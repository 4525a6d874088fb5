"""A federation for a doctor's tests: its own authority, a Mosquitto with mutual TLS, and a device to be examined."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.core.state import AgentState, dump_state
from fedmq_edge_agent.examining.checks import CHECKS
from fedmq_edge_agent.examining.course import examine
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.broker_fixtures import PATIENCE_S, CustomBroker

DEVICE = "dev-1"
PRIVATE = bytes(range(32))
HOSTS = ("127.0.0.1", "localhost")
DAY = timedelta(days=1)
NETWORK = frozenset({"torch", "task", "data", "memory", "disk"})
"""What has nothing to do with the network, and is left out where that is looked at."""


class Authority:
    """Makes certificates, good and bad, in a folder."""

    def __init__(self, folder: Path, name: str = "home") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.now = datetime.now(UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(f"{name} authority")
        self._revoked: list[int] = []
        made = (
            self._begin(self._name, self._key.public_key(), -400, 4000)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(made.public_bytes(Encoding.PEM))
        self.crl = folder / "crl.pem"
        self.write_list()

    def _begin(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, first: float, last: float
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now + first * DAY)
            .not_valid_after(self.now + last * DAY)
        )

    def issue(
        self,
        name: str,
        *,
        days: tuple[float, float] = (-1, 365),
        hosts: tuple[str, ...] = (),
        revoked: bool = False,
    ) -> tuple[Path, Path]:
        """A certificate, valid from one day to another as seen from today, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._begin(_named(name), key.public_key(), *days)
        if hosts:
            names = [_general(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        number = len(list(self.folder.iterdir()))
        certificate, key_file = self.folder / f"{name}-{number}.pem", self.folder / f"{name}-{number}.key"
        certificate.write_bytes(made.public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key_file.chmod(0o600)
        if revoked:
            self._revoked.append(made.serial_number)
            self.write_list()
        return certificate, key_file

    def write_list(self, *, ends: float = 30) -> None:
        """Write the list of revoked certificates, which ends so many days from today."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(self.now - 9 * DAY)
            .next_update(self.now + ends * DAY)
        )
        for number in self._revoked:
            one = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(self.now - DAY)
            builder = builder.add_revoked_certificate(one.build())
        self.crl.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class Clinic:
    """A broker, and what a device needs to come in."""

    def __init__(self, folder: Path, start_broker: Callable[[str], CustomBroker]) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.topics = Topics("home")
        self.start_broker = start_broker

    def open(self, *more: str, server: tuple[Path, Path] | None = None, access: str | None = None) -> int:
        """Start the broker; returns its port.

        Args:
            more: further lines of its configuration.
            server: its certificate and key; by default one for `HOSTS`.
            access: the access list; by default the coordinator may do everything, and each device what it must.
        """
        certificate, key = server or self.authority.issue("broker", hosts=HOSTS)
        lists = self.folder / "access"
        lists.write_text(self.access() if access is None else access)
        lists.chmod(0o700)
        lines = [
            "listener {port} 127.0.0.1",
            f"cafile {self.authority.ca}",
            f"certfile {certificate}",
            f"keyfile {key}",
            f"crlfile {self.authority.crl}",
            "require_certificate true",
            "use_identity_as_username true",
            "use_username_as_clientid true",
            "allow_anonymous false",
            f"acl_file {lists}",
            *more,
        ]
        return self.start_broker("\n".join(lines)).port

    def access(self, *, without: str = "nothing") -> str:
        """An access list like production's, of which rules that name a topic may be left out."""
        root = self.topics.root
        lines = [
            "user @coordinator",
            "topic readwrite #",
            f"pattern read {root}/coordinator/status",
            f"pattern read {root}/coordinator/run",
            f"pattern read {root}/model/+/+/+",
            f"pattern read {root}/dev/%u/down/+",
            f"pattern write {root}/dev/%u/presence",
            *(
                f"pattern write {root}/dev/%u/up/{kind}"
                for kind in ("hello", "update", "offer", "chunk", "report", "get")
            ),
        ]
        return "\n".join(line for line in lines if without not in line) + "\n"

    def reach(self, port: int, member: str = "@coordinator", **changes: Any) -> dict[str, Any]:
        """Settings by which a member comes in, for `connect`."""
        certificate, key = self.authority.issue(member)
        files = {"ca_file": self.authority.ca, "cert_file": certificate, "key_file": key}
        return {"url": f"mqtts://127.0.0.1:{port}", **files, **changes}

    def settings(self, port: int, broker: Mapping[str, Any] | None = None, **changes: Any) -> AgentSettings:
        """The device's; `broker` changes how it comes in."""
        reach = {**self.reach(port, DEVICE), **(broker or {})}
        given: dict[str, Any] = {
            "federation": "home",
            "id": DEVICE,
            "state_dir": self.folder / "state",
            "task": "fedmq.tasks.iris",
            "broker": BrokerSettings.model_validate(reach),
        }
        return AgentSettings.model_validate(given | changes)


def be_known(settings: AgentSettings, *, session: int = 7, private: bytes = PRIVATE) -> None:
    """Leave the state of an agent that ran before."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    identity = SigningKey(private).public_key
    key = settings.state_dir / "key"
    key.write_text(private.hex() + "\n")
    key.chmod(0o600)
    (settings.state_dir / "state").write_bytes(dump_state(AgentState(session=session, identity=identity)))


async def findings_of(settings: AgentSettings | Device, *names: str) -> dict[str, Finding]:
    """Examine, by all checks of the network or by some checks, and give back what each found."""
    device = settings if isinstance(settings, Device) else Device(settings)
    checks = [
        replace(check, limit_s=10 * PATIENCE_S)
        for check in CHECKS
        if (check.name in names if names else check.name not in NETWORK)
    ]
    try:
        return {finding.name: finding async for finding in examine(checks, device)}
    finally:
        await device.let_go()
