"""Members come and go on a real Mosquitto, and nobody else notices; a kill at any step heals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedmq_broker import membership
from fedmq_broker.authority import Change
from fedmq_broker.dynsec_control import Control
from fedmq_broker.probe import find_free_port
from fedmq_protocol.access import COORDINATOR, MONITOR, OPERATOR
from fedmq_protocol.aio import BrokerSettings, Disconnected, Will
from fedmq_protocol.errors import ConnectionFailedError, UsageError
from tests.broker.gate.conftest import ComeIn
from tests.broker.gate.world import World
from tests.broker_fixtures import PATIENCE_S, next_message, next_of

pytestmark = pytest.mark.mosquitto


def make_request(folder: Path, name: str) -> bytes:
    """A key that the device makes for itself, and the request for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


# ----------------------------------------------------------------------------------- while the broker runs


async def test_a_device_enrolled_while_the_broker_runs_speaks_at_once(world: World, come_in: ComeIn) -> None:
    coordinator = await come_in(world.settings(COORDINATOR))
    await coordinator.subscribe(world.topics.coordinator_filters())
    (made,), applied = await membership.enrol(world.site, ["dev-1"], live=world.live)
    assert (applied.how, applied.note) == ("live", "")
    assert (made.member.name, made.member.role, made.member.how) == ("dev-1", "device", "certificate")
    device = await come_in(world.settings("dev-1"))
    await device.subscribe(world.topics.device_filters("dev-1"))
    await device.publish(world.topics.up("dev-1", "hello"), b"here")
    assert (await next_message(coordinator.events())).payload == b"here"
    await coordinator.publish(world.topics.down("dev-1", "lease"), b"train")
    assert (await next_message(device.events())).payload == b"train"


async def test_others_stay_connected_while_members_come_and_go(world: World, come_in: ComeIn) -> None:
    await membership.enrol(world.site, ["bystander", "goner"], live=world.live)
    bystander = await come_in(world.settings("bystander"))
    goner = await come_in(world.settings("goner"))
    await bystander.subscribe(world.topics.device_filters("bystander"))
    await membership.enrol(world.site, ["dev-1", "dev-2"], live=world.live)
    await membership.enrol(world.site, ["board"], live=world.live, password=True)
    await membership.rename(world.site, "dev-2", "dev-3", live=world.live)
    await membership.revoke(world.site, ["goner", "dev-1"], live=world.live)
    assert isinstance(await next_of(goner.events(), Disconnected), Disconnected)
    coordinator = await come_in(world.settings(COORDINATOR))
    await coordinator.publish(world.topics.down("bystander", "lease"), b"still you")
    events = bystander.events()
    assert (await next_message(events)).payload == b"still you"
    assert world.log.count("as bystander ") == 1, "it connected once"


async def test_a_revoked_device_is_cut_off_and_refused(world: World, come_in: ComeIn, tmp_path: Path) -> None:
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    kept = tmp_path / "stolen"  # what is on the device: the operator's copy goes
    world.site.member("dev-1").folder.rename(kept)
    device = await come_in(world.settings("dev-1", files=kept))
    applied = await membership.revoke(world.site, ["dev-1"], live=world.live)
    assert (applied.how, applied.note) == ("live", "")
    lost = await next_of(device.events(), Disconnected)
    assert isinstance(lost, Disconnected)
    await device.stop()
    with pytest.raises(ConnectionFailedError):
        await come_in(world.settings("dev-1", files=kept))
    async with Control(world.live) as control:
        assert await control.client("dev-1") is None
        assert await control.role("dev-1") is None


async def test_two_that_are_revoked_within_a_second_are_both_refused(
    world: World, come_in: ComeIn, tmp_path: Path
) -> None:
    """Of two lists of the same date, TLS libraries may believe the first."""
    await membership.enrol(world.site, ["dev-1", "dev-2"], live=world.live)
    for name in ("dev-1", "dev-2"):
        world.site.member(name).folder.rename(tmp_path / name)
        await membership.revoke(world.site, [name], live=world.live)
    for name in ("dev-1", "dev-2"):
        with pytest.raises(ConnectionFailedError):
            await come_in(world.settings(name, files=tmp_path / name))


async def test_the_old_certificate_of_one_who_was_enrolled_anew_stays_revoked(
    world: World, come_in: ComeIn, tmp_path: Path
) -> None:
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    world.site.member("dev-1").folder.rename(tmp_path / "old")
    await membership.revoke(world.site, ["dev-1"], live=world.live)
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    assert (await come_in(world.settings("dev-1"))).is_connected
    with pytest.raises(ConnectionFailedError):
        await come_in(world.settings("dev-1", files=tmp_path / "old"))


async def test_the_presence_of_a_revoked_device_does_not_stay(world: World, come_in: ComeIn) -> None:
    """It is cut off without its last will: its certificate of birth would tell for ever that it is there."""
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    topic = world.topics.presence("dev-1")
    device = await come_in(world.settings("dev-1"), will=Will(topic, b"gone", retain=True))
    await device.publish(topic, b"here", retain=True)
    await membership.revoke(world.site, ["dev-1"], live=world.live)
    await membership.enrol(world.site, ["dev-2"], live=world.live)
    other = await come_in(world.settings("dev-2"))
    coordinator = await come_in(world.settings(COORDINATOR))
    await coordinator.subscribe(world.topics.coordinator_filters())
    await other.publish(world.topics.up("dev-2", "hello"), b"marker")
    assert (await next_message(coordinator.events())).payload == b"marker"


async def test_a_device_that_made_its_own_key(world: World, come_in: ComeIn, tmp_path: Path) -> None:
    request = make_request(tmp_path / "device", "dev-1")
    await membership.enrol(world.site, ["dev-1"], live=world.live, csr=request)
    files = world.site.member("dev-1")
    assert not files.key.exists()
    (tmp_path / "device" / "cert.pem").write_bytes(files.certificate.read_bytes())
    await (
        await come_in(world.settings("dev-1", files=tmp_path / "device"))
    ).stop()  # an identity has one session
    before = files.certificate.read_bytes()
    await membership.renew(world.site, "dev-1", live=world.live)  # a new certificate of the same key
    assert files.certificate.read_bytes() != before
    (tmp_path / "device" / "cert.pem").write_bytes(files.certificate.read_bytes())
    await (
        await come_in(world.settings("dev-1", files=tmp_path / "device"))
    ).stop()  # an identity has one session
    await membership.rename(world.site, "dev-1", "dev-2", live=world.live)
    (tmp_path / "device" / "cert.pem").write_bytes(world.site.member("dev-2").certificate.read_bytes())
    await (await come_in(world.settings("dev-2", files=tmp_path / "device"))).stop()
    await membership.revoke(world.site, ["dev-2"], live=world.live)
    with pytest.raises(UsageError, match="this key was revoked"):
        await membership.enrol(world.site, ["dev-2"], live=world.live, csr=make_again(tmp_path, "dev-2"))


def make_again(tmp_path: Path, name: str) -> bytes:
    """A request of the key that was made before."""
    key = serialization.load_pem_private_key((tmp_path / "device" / "key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


async def test_a_board_comes_in_by_password_until_it_is_renewed(world: World, come_in: ComeIn) -> None:
    (made,), _ = await membership.enrol(world.site, ["board"], live=world.live, password=True)
    files = world.site.member("board")
    assert files.password.stat().st_mode & 0o777 == 0o600
    assert made.password == files.password.read_text().strip()
    old = made.password
    board = await come_in(world.by_password("board"))
    await board.subscribe(world.topics.device_filters("board"))
    await membership.renew(world.site, "board", live=world.live)
    with pytest.raises(ConnectionFailedError):
        await come_in(world.by_password("board", old))
    assert (await come_in(world.by_password("board"))).is_connected
    await membership.revoke(world.site, ["board"], live=world.live)
    with pytest.raises(ConnectionFailedError):
        await come_in(world.by_password("board", old))


async def test_a_new_password_does_not_let_in_who_is_cut_off(world: World, come_in: ComeIn) -> None:
    await membership.enrol(world.site, ["board"], live=world.live, password=True)
    async with Control(world.live) as control:
        await control.cut_off("board")
    _, applied = await membership.renew(world.site, "board", live=world.live)
    assert applied.how == "live"
    with pytest.raises(ConnectionFailedError):
        await come_in(world.by_password("board"))
    async with Control(world.live) as control:
        await control.let_in("board")
    assert (await come_in(world.by_password("board"))).is_connected


async def test_a_password_holds_after_a_restart(world: World, come_in: ComeIn) -> None:
    """The plugin made a hash of its own while it ran; at the start it reads ours."""
    await membership.enrol(world.site, ["board"], live=world.live, password=True)
    world.stop()
    world.start()
    assert (await come_in(world.by_password("board"))).is_connected


async def test_a_renewed_device_is_not_cut_off_before_it_has_the_new_one(
    world: World, come_in: ComeIn, tmp_path: Path
) -> None:
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    files = world.site.member("dev-1").folder
    old = tmp_path / "old"
    old.mkdir()
    for name in ("cert.pem", "key.pem"):
        (old / name).write_bytes((files / name).read_bytes())
    await membership.renew(world.site, "dev-1", live=world.live)
    assert (await come_in(world.settings("dev-1", files=old))).is_connected
    await membership.renew(world.site, "dev-1", live=world.live, revoke_old=True)
    with pytest.raises(ConnectionFailedError):
        await come_in(world.settings("dev-1", files=old))
    assert (await come_in(world.settings("dev-1"))).is_connected


async def test_new_certificates_of_the_broker_and_the_roles(world: World, come_in: ComeIn) -> None:
    coordinator = await come_in(world.settings(COORDINATOR))
    before = world.site.mosquitto.certificate.read_bytes()
    made = membership.prepare(world.site, "home", ["localhost", "broker.home.arpa"])
    assert made == ["a certificate of the broker, for localhost, broker.home.arpa"]
    assert membership.signal_reload(world.site)
    assert (await come_in(world.settings(MONITOR))).is_connected
    assert coordinator.is_connected
    assert world.site.mosquitto.certificate.read_bytes() != before
    assert len(membership.prepare(world.site, "home", ["localhost", "broker.home.arpa"], renew=True)) == 5
    assert membership.prepare(world.site, "home", ["localhost", "broker.home.arpa"]) == []


@pytest.mark.parametrize("role", [COORDINATOR, OPERATOR])
async def test_a_role_whose_key_was_stolen(world: World, come_in: ComeIn, tmp_path: Path, role: str) -> None:
    """Also the one that tells the broker so: it must not end its own session half-way."""
    shutil.copytree(world.site.member(role).folder, tmp_path / "stolen")
    _, applied = await membership.renew(world.site, role, live=world.live, revoke_old=True)
    assert (applied.how, applied.note) == ("live", "")
    with pytest.raises(ConnectionFailedError):
        await come_in(world.settings(role, files=tmp_path / "stolen"))
    assert (await membership.enrol(world.site, ["dev-1"], live=world.live))[1].how == "live"
    assert (await come_in(world.settings("dev-1"))).is_connected


async def test_an_old_password_is_worth_nothing_once_a_certificate_is_there(
    world: World, come_in: ComeIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the broker has heard of neither but both together."""
    (made,), _ = await membership.enrol(world.site, ["board"], live=world.live, password=True)
    with monkeypatch.context() as patch:
        patch.setattr(membership, "is_listening", away)
        assert (await membership.revoke(world.site, ["board"], live=world.live)).how == "later"
    assert (await membership.enrol(world.site, ["board"], live=world.live))[1].how == "live"
    with pytest.raises(ConnectionFailedError):
        await come_in(world.by_password("board", made.password))
    assert (await come_in(world.settings("board"))).is_connected


async def test_a_broker_that_runs_where_its_file_said_before_is_not_taken_for_stopped(
    world: World, come_in: ComeIn, tmp_path: Path
) -> None:
    """Its port was changed in the file, and it was not started anew: what it keeps out, it keeps out all the same."""
    await membership.enrol(world.site, ["dev-1"], live=world.live)
    shutil.copytree(world.site.member("dev-1").folder, tmp_path / "kept")
    elsewhere = world.settings(OPERATOR, port=find_free_port("127.0.0.1"))
    for live in (elsewhere, None):
        applied = await membership.revoke(world.site, ["dev-1"], live=live)
        assert applied.how == "later"
        assert "Mosquitto runs, but does not listen where" in applied.note
    async with asyncio.timeout(PATIENCE_S):
        while await is_in(come_in, world, tmp_path / "kept"):  # it takes a signal when it comes round to it
            pass
    assert (await membership.settle(world.site, live=world.live)).how == "live"
    async with Control(world.live) as control:
        assert await control.client("dev-1") is None


async def is_in(come_in: ComeIn, world: World, files: Path) -> bool:
    with contextlib.suppress(ConnectionFailedError):
        await (await come_in(world.settings("dev-1", files=files))).stop()
        return True
    return False


async def away(_settings: BrokerSettings) -> bool:
    raise ConnectionFailedError("nobody answers")


# ------------------------------------------------------------------------------- while it does not, and killed


async def test_what_happens_while_the_broker_is_away_holds_from_its_start(
    stopped: World, come_in: ComeIn, tmp_path: Path
) -> None:
    _, applied = await membership.enrol(stopped.site, ["dev-1", "dev-2"], live=stopped.live)
    assert applied.how == "stopped"
    stopped.site.member("dev-2").folder.rename(tmp_path / "dev-2")
    assert (await membership.revoke(stopped.site, ["dev-2"], live=stopped.live)).how == "stopped"
    stopped.start()
    try:
        assert (await come_in(stopped.settings("dev-1"))).is_connected
        with pytest.raises(ConnectionFailedError):
            await come_in(stopped.settings("dev-2", files=tmp_path / "dev-2"))
    finally:
        stopped.stop()


class KilledError(Exception):
    """Stands for SIGKILL: nothing of ours runs after it."""


KILLS = [
    "fedmq_broker.membership.write_aside",
    "fedmq_broker.authority.write_register",
    "fedmq_broker.authority.Change.refresh_crl",
    "fedmq_broker.membership.put_in_place",
    "fedmq_broker.membership._copy_trust",
    "fedmq_broker.membership.signal_reload",
    "fedmq_broker.membership.Control.add",
    "fedmq_broker.membership.Control.remove",
    "fedmq_broker.authority.Change.known_to_broker",
]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("where", KILLS)
async def test_a_kill_at_any_step_heals(
    world: World, come_in: ComeIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, moment: str
) -> None:
    """One is enrolled and one revoked, in a process that dies at a step; the next command, or a start, mends it."""
    await membership.enrol(world.site, ["goner"], live=world.live)
    goner = tmp_path / "goner"
    goner.mkdir()
    for name in ("cert.pem", "key.pem"):
        (goner / name).write_bytes((world.site.member("goner").folder / name).read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(where, dying(where, after=moment == "after"))
        for change in (
            membership.enrol(world.site, ["dev-1"], live=world.live),
            membership.revoke(world.site, ["goner"], live=world.live),
        ):
            with contextlib.suppress(KilledError):
                await change
    register = world.authority.register()
    assert (await membership.settle(world.site, live=world.live)).how == "live"
    assert not world.authority.register().pending
    assert not list(world.site.members.glob(".*"))
    if "dev-1" in register.members:  # it was enrolled, and gets in
        assert (await come_in(world.settings("dev-1"))).is_connected
    else:  # it was not, and can be
        await membership.enrol(world.site, ["dev-1"], live=world.live)
        assert (await come_in(world.settings("dev-1"))).is_connected
    if register.members["goner"].revoked_at is not None:
        with pytest.raises(ConnectionFailedError):
            await come_in(world.settings("goner", files=goner))
    else:
        assert (await come_in(world.settings("goner", files=goner))).is_connected
    async with Control(world.live) as control:
        assert not await control.sync(world.authority.members().values(), world.topics), "it had all"


def dying(where: str, *, after: bool) -> Callable[..., object]:
    """What dies at its first call, before or after it does its work."""
    module_path, _, name = where.rpartition(".")
    owner: object
    if module_path.endswith((".Change", ".Control")):
        owner = Change if module_path.endswith(".Change") else Control
    else:
        owner = importlib.import_module(module_path)
    original = getattr(owner, name)
    if module_path.endswith(".Control"):

        async def dies_async(*arguments: object, **named: object) -> object:
            if after:
                await original(*arguments, **named)
            raise KilledError

        return dies_async

    def dies(*arguments: object, **named: object) -> object:
        if after:
            original(*arguments, **named)
        raise KilledError

    return dies
