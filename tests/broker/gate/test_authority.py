"""The authority: what OpenSSL says of its certificates, what a kill leaves, and two operators at once."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fedmq_broker import authority_register, membership
from fedmq_broker.authority import Authority, Credentials
from fedmq_broker.authority_certificates import read_request
from fedmq_broker.authority_register import Issued, Member, Register, Verifier, read_register, write_register
from fedmq_broker.site import Site
from fedmq_protocol.access import ROLES
from fedmq_protocol.errors import StoreError, UsageError

OPENSSL = shutil.which("openssl")
openssl_only = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def forward(self, days: float) -> None:
        self.now += dt.timedelta(days=days)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.create(tmp_path / "authority", "home", clock=clock)


def verify(
    authority: Authority, certificate: bytes | None, purpose: str, at: dt.datetime, **more: str
) -> str:
    """What OpenSSL's own verification says."""
    assert OPENSSL is not None
    assert certificate is not None
    path = authority.files.folder / "checked.pem"
    path.write_bytes(certificate)
    options = [part for name, value in more.items() for part in (f"-{name}", value)]
    done = subprocess.run(
        [
            *(OPENSSL, "verify", "-x509_strict", "-crl_check", "-attime", str(int(at.timestamp()))),
            *("-CAfile", str(authority.files.ca), "-CRLfile", str(authority.files.crl), "-purpose", purpose),
            *options,
            str(path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return "OK" if done.returncode == 0 else done.stderr


# ------------------------------------------------------------------------------------ by a second implementation


@openssl_only
def test_openssl_takes_a_member_for_a_client_and_for_nothing_else(authority: Authority, clock: Clock) -> None:
    made = authority.issue("dev-1")
    assert verify(authority, made.certificate, "sslclient", clock.now) == "OK"
    assert "purpose" in verify(authority, made.certificate, "sslserver", clock.now)
    assert "expired" in verify(authority, made.certificate, "sslclient", clock.now + dt.timedelta(days=731))
    assert "not yet valid" in verify(
        authority, made.certificate, "sslclient", clock.now - dt.timedelta(days=3)
    )


@openssl_only
def test_openssl_takes_the_server_by_all_its_names(authority: Authority, clock: Clock) -> None:
    made = authority.issue_server(["broker.home.arpa", "192.0.2.7", "2001:db8::7"])
    for name in ("broker.home.arpa", "localhost"):
        assert verify(authority, made.certificate, "sslserver", clock.now, verify_hostname=name) == "OK"
    for address in ("192.0.2.7", "2001:db8::7", "127.0.0.1", "::1"):
        assert verify(authority, made.certificate, "sslserver", clock.now, verify_ip=address) == "OK"
    assert verify(authority, made.certificate, "sslserver", clock.now, verify_hostname="other") != "OK"
    assert "purpose" in verify(authority, made.certificate, "sslclient", clock.now)
    past = dt.datetime(
        2020, 1, 2, tzinfo=dt.UTC
    )  # as on a board whose clock starts anew; its list is the broker's
    checked = verify(authority, made.certificate, "sslserver", past)
    assert "CRL is not yet valid" in checked
    assert "certificate is not yet valid" not in checked


@openssl_only
def test_openssl_finds_the_revoked_on_the_list(authority: Authority, clock: Clock) -> None:
    first, second = authority.issue("dev-1"), authority.issue("dev-2")
    authority.revoke("dev-1")
    assert "revoked" in verify(authority, first.certificate, "sslclient", clock.now)
    assert verify(authority, second.certificate, "sslclient", clock.now) == "OK"


@openssl_only
def test_a_member_of_another_federation_is_none_of_this_one(
    authority: Authority, clock: Clock, tmp_path: Path
) -> None:
    made = Authority.create(tmp_path / "other", "home", clock=clock).issue("dev-1")
    assert verify(authority, made.certificate, "sslclient", clock.now) != "OK"


# -------------------------------------------------------------------------------------------- over the years


def test_what_has_little_left_is_due(authority: Authority, clock: Clock) -> None:
    member = authority.issue("dev-1").member
    assert not authority.is_due(member.current)
    clock.forward(730 * 2 / 3 - 1)
    assert not authority.is_due(member.current)
    clock.forward(2)
    assert authority.is_due(member.current)
    assert authority.is_due(None)
    renewed = authority.renew("dev-1").member
    assert not authority.is_due(renewed.current)
    assert len(renewed.certificates) == 2
    clock.forward(731)
    assert len(authority.renew("dev-1").member.certificates) == 1, "expired ones are forgotten"


def test_no_certificate_outlives_the_authority(authority: Authority, clock: Clock) -> None:
    end = authority.ca.not_valid_after_utc
    assert authority.crl_not_after() == end
    clock.forward(20 * 365 - 10)
    assert authority.issue("dev-1").member.not_after == end


@pytest.mark.parametrize("days", [float("inf"), 1e300])
def test_for_ever_is_as_long_as_the_authority(authority: Authority, days: float) -> None:
    assert authority.issue("dev-1", days=days).member.not_after == authority.ca.not_valid_after_utc


@pytest.mark.parametrize("days", [float("nan"), 0.0, -1.0])
def test_a_certificate_holds_for_some_time(authority: Authority, days: float) -> None:
    with pytest.raises(UsageError, match="cannot hold for"):
        authority.issue("dev-1", days=days)
    assert "dev-1" not in authority.members()


@pytest.mark.parametrize("host", ["", "a b", "x\ny", "bad..name", "mqtts://x"])
def test_what_is_no_host_gets_no_certificate(authority: Authority, host: str) -> None:
    with pytest.raises(UsageError, match="neither a host's name nor an address"):
        authority.issue_server([host])


def test_the_list_is_made_anew_in_time_and_grows_a_date_each_time(authority: Authority, clock: Clock) -> None:
    dates = []
    for name in ("a", "b", "c"):
        authority.issue(name)
        authority.revoke(name)
        crl = authority.read_crl()
        assert crl is not None
        dates.append(crl.last_update_utc)
    assert dates == sorted(set(dates)), "all within a second, and each is later than the one before"
    assert not authority.refresh_crl()
    clock.forward(20 * 365 * 0.7)
    assert authority.refresh_crl()
    crl = authority.read_crl()
    assert crl is not None
    assert crl.last_update_utc > dates[-1]
    assert len(list(crl)) == 0, "what has expired by itself needs no place on it"


def test_a_list_that_was_lost_comes_back(authority: Authority) -> None:
    made = authority.issue("dev-1").member
    authority.revoke("dev-1")
    authority.files.crl.unlink()
    assert authority.refresh_crl()
    crl = authority.read_crl()
    assert crl is not None
    assert [each.serial_number for each in crl] == [made.serial]


# ------------------------------------------------------------------------------------------------ requests


def request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, name: str | None
) -> bytes:
    names = [] if name is None else [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_keys_that_a_device_may_have(
    authority: Authority, make: Callable[[], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]
) -> None:
    key = make()
    made = authority.issue("dev-1", csr=request(key, "dev-1"))
    assert made.key is None
    assert made.certificate is not None
    assert x509.load_pem_x509_certificate(made.certificate).public_key() == key.public_key()
    with pytest.raises(UsageError, match="this key is dev-1's"):
        authority.issue("dev-2", csr=request(key, None))


def test_requests_that_are_refused(authority: Authority) -> None:
    good = request(ec.generate_private_key(ec.SECP256R1()), "dev-1")
    parsed = x509.load_pem_x509_csr(good)
    forged = bytearray(parsed.public_bytes(serialization.Encoding.DER))
    forged[-1] ^= 1
    weak = request(rsa.generate_private_key(65537, 1024), "dev-1")
    odd = dsa.generate_private_key(1024)  # primes of 2,048 bits may take ten times as long to find as usual
    builder = x509.CertificateSigningRequestBuilder().subject_name(parsed.subject)
    of_dsa = builder.sign(odd, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    for data, said in (
        (bytes(forged), "not signed by its own key"),
        (weak, "of a kind that not every broker takes"),
        (of_dsa, "of a kind that not every broker takes"),
        (request(ec.generate_private_key(ec.SECP256R1()), "dev-2"), "the request is of dev-2, not of dev-1"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n", "no certificate signing request"),
        (b"x" * 100_000, "100000 bytes are no certificate signing request"),
        (authority.files.ca.read_bytes(), "no certificate signing request"),
    ):
        with pytest.raises(UsageError, match=said):
            authority.issue("dev-1", csr=data)
    assert not authority.members()


@given(st.binary(max_size=300))
def test_nonsense_is_no_request(data: bytes) -> None:
    with pytest.raises(UsageError):
        read_request(data, "dev-1")


# ------------------------------------------------------------------------------------------------- on disk


def test_secrets_are_for_nobody_else(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        site = Site(tmp_path / "site")
        membership.prepare(site, "home", ["localhost"])
    finally:
        os.umask(old)
    for path in site.folder.rglob("*"):
        mode = path.stat().st_mode & 0o777
        if path.name in {"ca.key", "key.pem", "server.key", "members.json", "dynamic-security.json"}:
            assert mode == 0o600, path
        if path in {site.authority.folder, site.members} or path.parent == site.members:
            assert mode == 0o700, path
        assert not mode & 0o022, f"{path} can be written by others"


def test_a_register_that_is_damaged_is_said_to_be(authority: Authority) -> None:
    path = authority.files.register
    good = path.read_text()
    for text, said in (
        (good[:-5], "cannot be read"),
        ("[]", "damaged"),
        (json.dumps({"format": 1}), "damaged"),
        (good.replace('"format": 1', '"format": 2'), "is of format 2"),
    ):
        path.write_text(text)
        with pytest.raises(StoreError, match=said):
            authority.members()
    with pytest.raises(UsageError, match="fedmq broker init makes one"):
        Authority.open(path.parent / "nowhere")
    path.write_text(good)
    other = Authority.create(path.parent.parent / "other", "home")
    shutil.copy(other.files.key, authority.files.key)
    with pytest.raises(StoreError, match="is not the key of"):
        Authority.open(path.parent)


TIMES = st.datetimes(min_value=dt.datetime(2020, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001
ISSUED = st.builds(
    Issued,
    serial=st.integers(1, 2**159),
    issued_at=TIMES,
    not_after=TIMES,
    key_id=st.text(),
    made_key=st.booleans(),
    revoked_at=st.none() | TIMES,
)
MEMBERS = st.builds(
    Member,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True),
    how=st.sampled_from(["certificate", "password"]),
    enrolled_at=TIMES,
    revoked_at=st.none() | TIMES,
    certificates=st.lists(ISSUED, max_size=3).map(tuple),
    verifier=st.none() | st.builds(Verifier, st.binary(), st.integers(1, 10**6), st.binary()),
)


@given(st.lists(MEMBERS, max_size=4), st.lists(ISSUED, max_size=2), st.none() | TIMES)
def test_a_register_is_read_as_it_was_written(
    members: list[Member], server: list[Issued], update: dt.datetime | None
) -> None:
    register = Register("home", server=tuple(server), hosts=("a", "b"), crl_number=3, crl_update=update)
    register = register.with_members(*members)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "members.json"
        write_register(path, register)
        assert read_register(path) == register


def test_a_kill_while_a_file_is_replaced_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    authority_register.replace_file(path, b"old", mode=0o600)
    for step in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                authority_register.replace_file(path, b"new", mode=0o600)
        assert path.read_bytes() == b"old"
    authority_register.replace_file(path, b"new", mode=0o644)
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["ca.key", "ca.pem", "members.json", "crl.pem"])
def test_an_authority_whose_making_was_killed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    site = Site(tmp_path / "site")
    replace = authority_register.replace_file

    def killed(path: Path, data: bytes, *, mode: int) -> None:
        if path.name == step:
            raise KeyboardInterrupt
        replace(path, data, mode=mode)

    with monkeypatch.context() as patch:
        patch.setattr("fedmq_broker.authority.replace_file", killed)
        patch.setattr("fedmq_broker.authority_register.replace_file", killed)
        patch.setattr("fedmq_broker.authority_change.replace_file", killed)
        with pytest.raises(KeyboardInterrupt):
            membership.prepare(site, "home", ["localhost"])
    made = membership.prepare(site, "home", ["localhost"])
    assert len(made) >= 4
    assert set(Authority.open(site.authority.folder).members()) == set(ROLES)
    assert membership.prepare(site, "home", ["localhost"]) == []


def _enrol_some(folder: Path, prefix: str) -> None:
    authority = Authority.open(folder)
    for number in range(10):
        authority.issue(f"{prefix}-{number}")


def test_two_operators_at_once_lose_nobody(authority: Authority) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_enrol_some, args=(authority.files.folder, prefix))
        for prefix in ("a", "b", "c")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert set(authority.members()) == {f"{prefix}-{number}" for prefix in "abc" for number in range(10)}


def test_nothing_secret_is_shown_by_accident(authority: Authority) -> None:
    by_certificate: Credentials = authority.issue("dev-1")
    by_password = authority.issue("board", password=True)
    assert by_certificate.key is not None
    assert by_password.password is not None
    assert by_password.member.verifier is not None
    shown = repr(by_certificate) + repr(by_password) + repr(authority.members())
    assert "PRIVATE KEY" not in shown
    assert by_password.password not in shown
    assert repr(by_password.member.verifier.hash) not in shown
    assert by_password.password not in authority.files.register.read_text()
