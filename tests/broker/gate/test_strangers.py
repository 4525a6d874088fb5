"""Who is no member, or is none any more, does not get in: each by the means that it has."""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedmq_broker import authority_certificates as certificates
from fedmq_broker import membership
from fedmq_broker.authority import Authority
from fedmq_broker.authority_register import replace_file
from fedmq_protocol.access import COORDINATOR
from fedmq_protocol.aio import BrokerSettings, Will
from fedmq_protocol.errors import ConnectionFailedError
from tests.broker.gate.conftest import ComeIn
from tests.broker.gate.matrix import ROOT, Ear
from tests.broker.gate.world import HOST, World
from tests.broker_fixtures import PATIENCE_S

pytestmark = pytest.mark.mosquitto


async def refused(come_in: ComeIn, settings: BrokerSettings) -> bool:
    try:
        await come_in(settings)
    except ConnectionFailedError:
        return True
    return False


def write_identity(folder: Path, key: Any, certificate: x509.Certificate) -> Path:
    folder.mkdir()
    (folder / "key.pem").write_bytes(certificates.key_pem(key))
    (folder / "cert.pem").write_bytes(certificates.pem(certificate))
    return folder


async def test_without_a_certificate(world: World, come_in: ComeIn) -> None:
    settings = world.settings(COORDINATOR).model_copy(update={"cert_file": None, "key_file": None})
    assert await refused(come_in, settings)


async def test_with_the_certificate_of_another_authority(
    world: World, come_in: ComeIn, tmp_path: Path
) -> None:
    """Of the same name, for a federation of the same name."""
    foreign = Authority.create(tmp_path / "foreign", "home")
    for name in (COORDINATOR, "dev-1"):
        made = foreign.issue(name)
        assert made.certificate is not None
        assert made.key is not None
        folder = tmp_path / name
        folder.mkdir()
        (folder / "cert.pem").write_bytes(made.certificate)
        (folder / "key.pem").write_bytes(made.key)
        assert await refused(come_in, world.settings(name, files=folder))


async def test_with_an_expired_certificate(world: World, come_in: ComeIn, tmp_path: Path) -> None:
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    key = certificates.new_key()
    now = dt.datetime.now(dt.UTC)
    minute = dt.timedelta(minutes=1)
    expired = world.authority.signer.member(
        "dev-1", key.public_key(), now=now - minute, not_after=now - minute
    )
    assert await refused(
        come_in, world.settings("dev-1", files=write_identity(tmp_path / "old", key, expired))
    )
    fresh = world.authority.signer.member("dev-1", key.public_key(), now=now, not_after=now + 60 * minute)
    assert not await refused(
        come_in, world.settings("dev-1", files=write_identity(tmp_path / "new", key, fresh))
    )


async def test_with_the_broker_s_own_certificate(world: World, come_in: ComeIn, tmp_path: Path) -> None:
    """It serves servers alone; and a member's serves clients alone, so that no device passes for the broker."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(world.site.mosquitto.certificate, folder / "cert.pem")
    shutil.copy(world.site.mosquitto.key, folder / "key.pem")
    assert await refused(come_in, world.settings("broker", files=folder))
    context = ssl.create_default_context(cafile=str(world.site.authority.ca))
    context.check_hostname = False
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = world.site.member(COORDINATOR)
    server.load_cert_chain(files.certificate, files.key)
    left, right = socket.socketpair()
    with left, right:
        serving = asyncio.get_running_loop().run_in_executor(None, handshake, server, right)
        left.settimeout(PATIENCE_S)
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            context.wrap_socket(left, server_hostname=HOST)
        left.close()
        await serving


def handshake(context: ssl.SSLContext, sock: socket.socket) -> None:
    sock.settimeout(PATIENCE_S)
    try:
        context.wrap_socket(sock, server_side=True).close()
    except OSError:
        sock.close()


async def test_a_certificate_of_ours_that_nobody_enrolled_opens_nothing(
    world: World, come_in: ComeIn, tmp_path: Path
) -> None:
    """Of a register that was lost, say: the broker's TLS lets it through, and the plugin does not know it."""
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    key, now = certificates.new_key(), dt.datetime.now(dt.UTC)
    made = world.authority.signer.member("ghost", key.public_key(), now=now, not_after=now + dt.timedelta(1))
    connection = await come_in(world.settings("ghost", files=write_identity(tmp_path / "ghost", key, made)))
    ghost = Ear(connection)
    coordinator = Ear(await come_in(world.settings(COORDINATOR)))
    assert await coordinator.subscribe(f"{ROOT}/dev/+/up/+")
    for topic_filter in ("#", f"{ROOT}/coordinator/run", f"{ROOT}/dev/ghost/down/+"):
        assert not await ghost.subscribe(topic_filter)
    await ghost.publish(f"{ROOT}/dev/ghost/up/hello", b"boo")
    device = Ear(await come_in(world.settings("dev-1")))
    await device.publish(f"{ROOT}/dev/dev-1/up/hello", b"end")
    assert await coordinator.until(b"end") == []
    for ear in (ghost, coordinator, device):
        await ear.stop()


@pytest.mark.parametrize("websockets", [False, True], ids=["tls", "websockets"])
async def test_at_the_doors_for_passwords(world: World, come_in: ComeIn, websockets: bool) -> None:  # noqa: FBT001
    await membership.enrol(world.site, ["board"], live=world.live, password=True)
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    right = world.by_password("board", websockets=websockets)
    assert not await refused(come_in, right)
    nobody = right.model_copy(update={"username": None, "password": None})
    for settings in (
        nobody,
        world.by_password("board", "wrong", websockets=websockets),
        world.by_password("board", "", websockets=websockets),
        world.by_password("stranger", "x", websockets=websockets),
        world.by_password("dev-1", "", websockets=websockets),  # who has a certificate has no password
        world.by_password("dev-1", "x", websockets=websockets),
        world.by_password("@operator", "", websockets=websockets),
        world.by_password("@coordinator", "x", websockets=websockets),
    ):
        assert await refused(come_in, settings)
    certified = world.settings("dev-1", port=world.password_port)
    assert await refused(come_in, certified), "a certificate counts for nothing at that door"


async def test_a_password_counts_for_nothing_at_the_door_for_certificates(
    world: World, come_in: ComeIn
) -> None:
    """A device that says another's name and password is still itself: the certificate says who it is."""
    await membership.enrol(world.site, ["board"], live=world.live, password=True)
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    password = world.site.member("board").password.read_text().strip()
    bare = world.by_password("board").model_copy(update={"url": f"mqtts://{HOST}:{world.port}"})
    assert await refused(come_in, bare)
    both = world.settings("dev-1").model_copy(
        update={"username": "board", "password": world.by_password("board", password).password}
    )
    device = Ear(await come_in(both))
    assert not await device.subscribe(f"{ROOT}/dev/board/down/+")
    assert await device.subscribe(f"{ROOT}/dev/dev-1/down/+")
    await device.stop()


# ------------------------------------------------------------------------------------------------ revoked


def knock(
    world: World, files: Path, before: ssl.SSLSession | None, context: ssl.SSLContext
) -> tuple[bool, Any]:
    """Connect with what an earlier TLS session left; whether MQTT answered, and what this one leaves."""
    connect = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04same"
    with socket.create_connection((HOST, world.port), timeout=PATIENCE_S) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=HOST, session=before) as tls:
                tls.sendall(connect)
                answered = tls.recv(4)[:1] == b"\x20"
                return answered, tls.session
        except OSError:
            return False, None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_tls_session_is_not_resumed_after_the_revocation(
    world: World, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Resuming one shows no certificate, so that no list would be asked."""
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    files = tmp_path / "device"
    shutil.copytree(world.site.member("dev-1").folder, files)
    context = ssl.create_default_context(cafile=str(world.site.authority.ca))
    context.maximum_version = version
    context.load_cert_chain(files / "cert.pem", files / "key.pem")
    answered, session = await asyncio.to_thread(knock, world, files, None, context)
    assert answered
    answered, session = await asyncio.to_thread(knock, world, files, session, context)
    assert answered, "it may come again while it is a member"
    await membership.revoke(world.site, ["dev-1"], live=world.live)
    answered, _ = await asyncio.to_thread(knock, world, files, session, context)
    assert not answered
    await membership.enrol(
        world.site, ["dev-1"], live=world.live
    )  # the name is known again: the old one stays out
    answered, _ = await asyncio.to_thread(knock, world, files, session, context)
    assert not answered


@pytest.mark.parametrize("password", [False, True], ids=["certificate", "password"])
async def test_the_last_will_of_a_revoked_device_is_its_last_word(
    world: World,
    come_in: ComeIn,
    password: bool,  # noqa: FBT001
) -> None:
    """So the coordinator waits for it no longer; and nothing of it stays retained."""
    await membership.enrol(world.site, ["dev-1"], live=world.live, password=password)
    await membership.enrol(world.site, ["dev-2"], live=world.live)
    topic = world.topics.presence("dev-1")
    mine = world.by_password("dev-1") if password else world.settings("dev-1")
    device = await come_in(mine, will=Will(topic, b"last word", retain=True))
    await device.publish(topic, b"here", retain=True)
    coordinator = Ear(await come_in(world.settings(COORDINATOR)))
    for topic_filter in world.topics.coordinator_filters():
        assert await coordinator.subscribe(topic_filter)
    await membership.revoke(world.site, ["dev-1"], live=world.live)
    other = Ear(await come_in(world.settings("dev-2")))
    await other.publish(world.topics.up("dev-2", "hello"), b"end")
    said = [payload for _, payload in await coordinator.until(b"end")]
    assert said == [b"here", b"last word", b""]
    assert not list(world.site.members.glob(".*"))
    await coordinator.stop()
    await other.stop()


async def test_an_expired_list_locks_everybody_out_and_the_next_command_mends_it(
    world: World, come_in: ComeIn
) -> None:
    """Ours lasts as long as the authority. One that somebody else made may not."""
    authority = world.authority
    crl = authority.read_crl()
    assert crl is not None
    assert crl.next_update_utc == authority.ca.not_valid_after_utc
    long_ago = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.ca.subject)
        .last_update(long_ago)
        .next_update(long_ago + dt.timedelta(days=30))
        .add_extension(x509.CRLNumber(authority.register().crl_number), critical=False)
    )
    expired = certificates.pem(builder.sign(authority.signer.key, hashes.SHA256()))
    for path in (authority.files.crl, world.site.mosquitto.crl):
        replace_file(path, expired, mode=0o644)
    assert membership.signal_reload(world.site)
    async with asyncio.timeout(PATIENCE_S):
        while not await refused(come_in, world.settings(COORDINATOR)):
            pass  # Mosquitto takes the signal when it comes round to it
    applied = await membership.settle(world.site, live=world.live)
    assert applied.how == "live"
    async with asyncio.timeout(PATIENCE_S):
        while await refused(come_in, world.settings(COORDINATOR)):
            pass
