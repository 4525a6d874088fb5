"""The certificates of a federation's own authority, after RFC 5280: made from what they are told, and nothing else.

Keys are ECDSA on P-256: small handshakes, and every TLS library knows them. The key with which a device signs its
messages is another one (Ed25519), made by its agent: whoever runs the broker may know all of these and still forge no
update.

A device's certificate names it in the subject's common name, which Mosquitto takes for its user name, and serves
clients alone: no device can pass for the broker. The server's names its hosts, and serves servers alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmq_protocol.errors import UsageError

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

BEFORE_ANY_CLOCK: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
"""What a device checks is valid since then: a board without a battery wakes up in the past, and has to get in."""

_CLOCKS_DIFFER: Final = dt.timedelta(days=1)
_HOST: Final = re.compile(r"[A-Za-z0-9._*-]+")
_MIN_RSA_BITS: Final = 2048
_MAX_REQUEST_BYTES: Final = 65_536
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, not encrypted: whoever can read the file has the key."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem(thing: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """The text form that every TLS library reads."""
    return thing.public_bytes(serialization.Encoding.PEM)


def key_id(key: PublicKey) -> str:
    """By which a key is known again, whatever certificate it stands in: SHA-256 of its SubjectPublicKeyInfo, in hex."""
    plain = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(plain).hexdigest()


def make_ca(key: ec.EllipticCurvePrivateKey, federation: str, *, not_after: dt.datetime) -> x509.Certificate:
    """The authority's own certificate: it signs members and lists of revoked ones, and no further authority."""
    name = _subject("fedmq authority", federation)
    return (
        _builder(name, name, key.public_key(), not_before=BEFORE_ANY_CLOCK, not_after=not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )


@dataclass(frozen=True)
class Signer:
    """What signs: the authority's certificate and its key."""

    ca: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def member(
        self,
        name: str,
        public_key: PublicKey,
        *,
        now: dt.datetime,
        not_after: dt.datetime,
    ) -> x509.Certificate:
        """A member's certificate; it is checked by the broker, whose clock is right to a day."""
        builder = _builder(
            _subject(name), self.ca.subject, public_key, not_before=now - _CLOCKS_DIFFER, not_after=not_after
        )
        return _sign_leaf(builder, self.ca, self.key, _CLIENT)

    def server(
        self,
        hosts: Sequence[str],
        public_key: PublicKey,
        *,
        not_after: dt.datetime,
    ) -> x509.Certificate:
        """The broker's certificate, for each of `hosts`: names or addresses."""
        builder = _builder(
            _subject("broker"), self.ca.subject, public_key, not_before=BEFORE_ANY_CLOCK, not_after=not_after
        ).add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        return _sign_leaf(builder, self.ca, self.key, _SERVER)

    def crl(
        self,
        revoked: Iterable[tuple[int, dt.datetime]],
        *,
        number: int,
        this_update: dt.datetime,
    ) -> x509.CertificateRevocationList:
        """The list of revoked certificates: (serial, when), the newest of all by `number` and `this_update`.

        It expires with the authority and no earlier: it never travels, so that an old one could be slipped in, and an
        expired one would lock everybody out.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.ca.subject)
            .last_update(this_update)
            .next_update(self.ca.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(_authority_key(self.ca), critical=False)
        )
        for serial, when in revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
            builder = builder.add_revoked_certificate(one)
        return builder.sign(self.key, hashes.SHA256())


def read_request(data: bytes, name: str) -> PublicKey:
    """The key of a certificate signing request (PKCS #10) that a device made for itself.

    Args:
        data: PEM or DER.
        name: who is to be enrolled; a request that names somebody else is refused.

    Raises:
        UsageError: it is none, or its key or signature is not usable; the text names the mend.
    """
    mend = (
        f"make one with: openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc "
        f"-keyout key.pem -subj /CN={name} -out {name}.csr"
    )
    if len(data) > _MAX_REQUEST_BYTES:
        raise UsageError(f"{len(data)} bytes are no certificate signing request: {mend}")
    try:
        load = x509.load_pem_x509_csr if b"-----BEGIN" in data else x509.load_der_x509_csr
        request = load(data)
        sound = request.is_signature_valid
        key = request.public_key()
        names = [str(each.value) for each in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except Exception:  # noqa: BLE001 - a parser of hostile bytes: it raises what it likes
        raise UsageError(f"this is no certificate signing request: {mend}") from None
    if not sound:
        raise UsageError(f"the request is not signed by its own key: {mend}")
    if names and names != [name]:
        raise UsageError(f"the request is of {', '.join(names)}, not of {name}: enrol that name, or {mend}")
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
            return key
        case _:
            raise UsageError(f"the request's key is of a kind that not every broker takes: {mend}")


def public_key_of(certificate: x509.Certificate) -> PublicKey:
    """The key in one of our own certificates."""
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey)
    return key


# --------------------------------------------------------------------------------------------------- parts


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: PublicKey,
    *,
    not_before: dt.datetime,
    not_after: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _sign_leaf(
    builder: x509.CertificateBuilder,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    purpose: x509.ObjectIdentifier,
) -> x509.Certificate:
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(_authority_key(ca), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _subject(common_name: str, organization: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode("ascii")
    except (UnicodeError, ValueError):
        name = ""
    if not _HOST.fullmatch(name):
        raise UsageError(f"{host!r} is neither a host's name nor an address")
    return x509.DNSName(name)


def _authority_key(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
