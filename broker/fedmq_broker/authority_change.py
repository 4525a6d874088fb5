"""A change of the register: who is let in, renewed or revoked, while everybody else is kept out.

It is collected first and holds from `Change.commit` on, so that keys can be put in place before the register tells of
them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedmq_broker import authority_certificates as certificates
from fedmq_broker.authority_register import Issued, Member, Register, Verifier, replace_file, write_register
from fedmq_broker.site import AuthorityFiles
from fedmq_protocol.access import check_member
from fedmq_protocol.errors import UsageError

SERVER_DAYS: Final = 825
MEMBER_DAYS: Final = 2 * 365
RENEW_BELOW: Final = 1 / 3
"""A certificate with less of its life left than this is due."""

_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_PASSWORD_BYTES: Final = 24
_SALT_BYTES: Final = 12
_ITERATIONS: Final = 101
"""The plugin's own number. The password is 192 random bits: more rounds would only slow down a fleet's return."""

Clock: TypeAlias = Callable[[], dt.datetime]


@dataclass(frozen=True)
class Credentials:
    """What a member needs to come in. Its keys and passwords are nowhere else: keep them, or issue others.

    Attributes:
        certificate: PEM; None where it comes in by password.
        key: PEM; None where the device made its own, or comes in by password.
        password: in plain text.
    """

    member: Member
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ServerCredentials:
    """What the broker needs."""

    certificate: bytes
    key: bytes = field(repr=False)


class Change:
    """What is to change in the register, while others are kept out; it holds from `commit` on."""

    def __init__(
        self, files: AuthorityFiles, signer: certificates.Signer, register: Register, clock: Clock
    ) -> None:
        self._files = files
        self._signer = signer
        self._now = clock
        self.register = register

    def issue(
        self,
        name: str,
        *,
        csr: bytes | None = None,
        same_key_as: bytes | None = None,
        password: bool = False,
        days: float = MEMBER_DAYS,
    ) -> Credentials:
        """Enrol a member, or anew one that was revoked.

        Args:
            name: a device's id, or one of the roles.
            csr: a certificate signing request, where the device made its own key.
            same_key_as: a certificate (PEM) of the device under another name, for one of the same key.
            password: let it in by a password, which is made here, and not by a certificate.
            days: how long the certificate holds, at most as long as the authority's own.

        Raises:
            UsageError: the name is not usable or taken, the request is unsound, or its key was revoked.
        """
        check_member(name)
        before = self.register.members.get(name)
        if before is not None and before.active:
            raise UsageError(
                f"{name} is enrolled already: fedmq device renew {name} makes it a new certificate, "
                f"fedmq device revoke {name} throws it out"
            )
        return self._put(name, before, csr=csr, password=password, days=days, same_key_as=same_key_as)

    def renew(
        self,
        name: str,
        *,
        csr: bytes | None = None,
        days: float = MEMBER_DAYS,
        same_key_as: bytes | None = None,
    ) -> Credentials:
        """Issue a new certificate or password. The old certificate holds until it expires, the old password no more.

        Args:
            name: of a member that may come in.
            csr: a request for the new certificate, where the device made a new key.
            days: how long it holds.
            same_key_as: the old certificate (PEM), for a new one of the same key.

        Raises:
            UsageError: it is no member, or its key is not known here.
        """
        before = self.active(name)
        password = before.how == "password"
        return self._put(name, before, csr=csr, password=password, days=days, same_key_as=same_key_as)

    def revoke(self, name: str) -> Member:
        """Take away all that a member comes in by; once more does no harm.

        Raises:
            UsageError: it was never a member.
        """
        before = self.register.members.get(name)
        if before is None:
            raise UsageError(self.unknown(name))
        if not before.active:
            return before
        now = self._now()
        member = dataclasses.replace(
            before, revoked_at=now, verifier=None, certificates=_revoked(before.certificates, now)
        )
        self.register = self.register.with_members(member)
        self._number_crl()
        return member

    def revoke_older(self, name: str) -> None:
        """Take away a member's certificates but for the newest.

        Raises:
            UsageError: it is no member.
        """
        before = self.active(name)
        kept = before.certificates[-1:] if before.how == "certificate" else ()
        older = before.certificates[: len(before.certificates) - len(kept)]
        if any(one.revoked_at is None for one in older):
            older = _revoked(older, self._now())
            self.register = self.register.with_members(dataclasses.replace(before, certificates=older + kept))
            self._number_crl()

    def issue_server(self, hosts: Sequence[str], *, days: float = SERVER_DAYS) -> ServerCredentials:
        """The broker's certificate and key, for all of `hosts` and this machine's own names.

        Raises:
            UsageError: one of them is neither a name nor an address.
        """
        now = self._now()
        not_after = self._end(now, days)
        key = certificates.new_key()
        names = [*hosts, *(host for host in _LOCAL_HOSTS if host not in hosts)]
        made = self._signer.server(names, key.public_key(), not_after=not_after)
        issued = _issued(made, now, made_key=True)
        self.register = dataclasses.replace(
            self.register, server=(*_living(self.register.server, now), issued), hosts=tuple(hosts)
        )
        return ServerCredentials(certificates.pem(made), certificates.key_pem(key))

    def known_to_broker(self, names: Iterable[str]) -> None:
        """The broker has heard of what became of these members."""
        self.register = dataclasses.replace(self.register, pending=self.register.pending - set(names))

    def unknown(self, name: str) -> str:
        """What to say of a name that was never enrolled."""
        near = difflib.get_close_matches(name, self.register.members, n=1)
        return f"{name} is no member" + (
            f"; did you mean {near[0]}?" if near else ": fedmq device enroll lets one in"
        )

    def commit(self) -> None:
        """Write the register, then the list of revoked certificates where that has changed."""
        write_register(self._files.register, self.register)
        self.refresh_crl()

    def refresh_crl(self) -> bool:
        """Make the list of revoked certificates again where it is missing, behind the register, or old."""
        crl = read_crl(self._files.crl)
        if (
            crl is not None
            and _number(crl) == self.register.crl_number
            and self.register.crl_update is not None
        ):
            life = crl.next_update_utc - crl.last_update_utc if crl.next_update_utc else dt.timedelta()
            if crl.last_update_utc + life * (1 - RENEW_BELOW) > self._now():
                return False
        if (
            crl is None or _number(crl) == self.register.crl_number
        ):  # missing or old: a new number for a new list
            self._number_crl()
            write_register(self._files.register, self.register)
        now = self._now()
        assert self.register.crl_update is not None
        made = self._signer.crl(
            self.register.revoked(now),
            number=self.register.crl_number,
            this_update=self.register.crl_update,
        )
        replace_file(self._files.crl, certificates.pem(made), mode=0o644)
        return True

    # ------------------------------------------------------------------------------ parts

    def active(self, name: str) -> Member:
        """A member that may come in.

        Raises:
            UsageError: it never was one, or was revoked.
        """
        member = self.register.members.get(name)
        if member is None:
            raise UsageError(self.unknown(name))
        if not member.active:
            raise UsageError(f"{name} was revoked: fedmq device enroll {name} lets it in anew")
        return member

    def _put(
        self,
        name: str,
        before: Member | None,
        *,
        csr: bytes | None,
        password: bool,
        days: float,
        same_key_as: bytes | None = None,
    ) -> Credentials:
        now = self._now()
        living = () if before is None else _living(before.certificates, now)
        enrolled_at = now if before is None or not before.active else before.enrolled_at
        if password:
            secret = secrets.token_urlsafe(_PASSWORD_BYTES)
            member = Member(name, "password", enrolled_at, certificates=living, verifier=_verifier(secret))
            self.register = self.register.with_members(member)
            return Credentials(member, password=secret)
        key: ec.EllipticCurvePrivateKey | None = None
        if csr is not None:
            public_key = certificates.read_request(csr, name)
        elif same_key_as is not None:
            public_key = certificates.public_key_of(x509.load_pem_x509_certificate(same_key_as))
        else:
            key = certificates.new_key()
            public_key = key.public_key()
        if csr is not None:
            self._refuse_known_key(name, certificates.key_id(public_key))
        not_after = self._end(now, days)
        made = self._signer.member(name, public_key, now=now, not_after=not_after)
        issued = _issued(made, now, made_key=key is not None)
        member = Member(name, "certificate", enrolled_at, certificates=(*living, issued))
        self.register = self.register.with_members(member)
        return Credentials(member, certificates.pem(made), None if key is None else certificates.key_pem(key))

    def _refuse_known_key(self, name: str, key_id: str) -> None:
        own = self.register.members.get(name)
        if own is not None and any(
            one.key_id == key_id and one.revoked_at is None for one in own.certificates
        ):
            return
        for member in self.register.members.values():
            for one in member.certificates:
                if one.key_id != key_id:
                    continue
                if one.revoked_at is not None:
                    raise UsageError(
                        f"this key was revoked, as {member.name}'s: let the device make a new one"
                    )
                if member.name != name:
                    raise UsageError(f"this key is {member.name}'s: each device needs one of its own")

    def _end(self, now: dt.datetime, days: float) -> dt.datetime:
        if not days > 0:
            raise UsageError(f"a certificate cannot hold for {days:g} days")
        last = self._signer.ca.not_valid_after_utc
        return last if days >= (last - now) / dt.timedelta(days=1) else now + dt.timedelta(days=days)

    def _number_crl(self) -> None:
        # Of two lists, TLS libraries believe the later one: dates grow by a second at least, however fast they come.
        least = self._now() - dt.timedelta(days=1)
        if self.register.crl_update is not None:
            least = max(least, self.register.crl_update + dt.timedelta(seconds=1))
        self.register = dataclasses.replace(
            self.register, crl_number=self.register.crl_number + 1, crl_update=least.replace(microsecond=0)
        )


def read_crl(path: Path) -> x509.CertificateRevocationList | None:
    """A list of revoked certificates, as it stands on disk; None where there is none that can be read."""
    try:
        return x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError):
        return None


def _verifier(password: str) -> Verifier:
    salt = secrets.token_bytes(_SALT_BYTES)
    return Verifier(salt, _ITERATIONS, hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS))


def _issued(made: x509.Certificate, now: dt.datetime, *, made_key: bool) -> Issued:
    return Issued(
        serial=made.serial_number,
        issued_at=now.replace(microsecond=0),
        not_after=made.not_valid_after_utc,
        key_id=certificates.key_id(certificates.public_key_of(made)),
        made_key=made_key,
    )


def _living(every: tuple[Issued, ...], now: dt.datetime) -> tuple[Issued, ...]:
    return tuple(one for one in every if one.not_after > now)


def _revoked(every: tuple[Issued, ...], now: dt.datetime) -> tuple[Issued, ...]:
    when = now.replace(microsecond=0)
    return tuple(
        one if one.revoked_at is not None else dataclasses.replace(one, revoked_at=when) for one in every
    )


def _number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
