"""The federation's own certificate authority: who is let in, for how long, and who is not any more.

    authority = Authority.create(folder, "home")
    credentials = authority.issue("dev-1")              # key and certificate; the caller puts them where they belong
    authority.revoke("dev-1")                           # in the register, and on the list that the broker reads

Its folder holds the key that makes members: it stays on the operator's machine, and the broker needs none of it but
`ca.pem` and `crl.pem`. Each method takes the folder's lock, reads the register anew and writes it as a whole; what
takes several steps, such as putting keys in place before the register tells of them, goes by `changing`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedmq_broker import authority_certificates as certificates
from fedmq_broker.authority_register import (
    Issued,
    Member,
    Register,
    Verifier,
    locked,
    read_register,
    replace_file,
    write_register,
)
from fedmq_broker.site import AuthorityFiles
from fedmq_protocol.access import check_member
from fedmq_protocol.errors import StoreError, UsageError
from fedmq_protocol.topics import check_id

__all__ = ["Authority", "Change", "Credentials", "Issued", "Member", "Register", "Verifier"]

CA_DAYS: Final = 20 * 365
SERVER_DAYS: Final = 825
MEMBER_DAYS: Final = 2 * 365
RENEW_BELOW: Final = 1 / 3
"""A certificate with less of its life left than this is due."""

_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_PASSWORD_BYTES: Final = 24
_SALT_BYTES: Final = 12
_ITERATIONS: Final = 101
"""The plugin's own number. The password is 192 random bits: more rounds would only slow down a fleet's return."""

Clock = Callable[[], dt.datetime]


def _system_clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


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


class Authority:
    """The authority in one folder.

    Args:
        files: where everything lies.
        clock: the time in UTC; for tests.
    """

    def __init__(self, files: AuthorityFiles, clock: Clock = _system_clock) -> None:
        self.files = files
        self._clock = clock
        try:
            ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
        except FileNotFoundError:
            raise UsageError(
                f"there is no authority in {files.folder}: fedmq broker init makes one"
            ) from None
        except PermissionError as error:
            raise UsageError(f"the authority's {error.filename} is not for you to read") from None
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"the authority in {files.folder} cannot be used: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
            raise StoreError(f"{files.key} is not the key of {files.ca}")
        self.signer = certificates.Signer(ca, key)

    @classmethod
    def open(cls, folder: Path, *, clock: Clock = _system_clock) -> Self:
        """The authority that was made there.

        Raises:
            UsageError: there is none.
            StoreError: it is damaged.
        """
        return cls(AuthorityFiles(folder), clock)

    @classmethod
    def create(cls, folder: Path, federation: str, *, clock: Clock = _system_clock) -> Self:
        """Make one, with a key of its own and nobody enrolled.

        A kill leaves none, or one that is whole: the register comes last. What a killed one left is made anew.

        Raises:
            UsageError: there is one already.
        """
        check_id(federation, what="federation")
        files = AuthorityFiles(folder)
        make_folder(folder)
        with locked(folder):
            if files.register.exists():
                raise UsageError(f"there is an authority in {folder} already")
            key = certificates.new_key()
            not_after = clock() + dt.timedelta(days=CA_DAYS)
            replace_file(files.key, certificates.key_pem(key), mode=0o600)
            ca = certificates.make_ca(key, federation, not_after=not_after)
            replace_file(files.ca, certificates.pem(ca), mode=0o644)
            write_register(files.register, Register(federation))
        authority = cls(files, clock)
        authority.refresh_crl()
        return authority

    # ------------------------------------------------------------------------------ asking

    @property
    def federation(self) -> str:
        return self.register().federation

    @property
    def ca(self) -> x509.Certificate:
        """Its own certificate."""
        return self.signer.ca

    def now(self) -> dt.datetime:
        """What its clock says."""
        return self._clock()

    def register(self) -> Register:
        """All that it remembers, as it stands on disk."""
        return read_register(self.files.register)

    def members(self) -> Mapping[str, Member]:
        """Everybody who was ever enrolled, by name, revoked ones included."""
        return self.register().members

    def crl_not_after(self) -> dt.datetime | None:
        """When the list of revoked certificates expires, and with it everybody's way in; None if there is none."""
        crl = self.read_crl()
        return None if crl is None else crl.next_update_utc

    def is_due(self, one: Issued | None) -> bool:
        """Whether it should be renewed now; also where there is none."""
        if one is None or one.revoked_at is not None:
            return True
        return one.not_after - self._clock() < (one.not_after - one.issued_at) * RENEW_BELOW

    # ------------------------------------------------------------------------------ changing

    @contextlib.contextmanager
    def changing(self) -> Iterator[Change]:
        """Keep others out, and collect what is to change; nothing holds before `Change.commit`."""
        with locked(self.files.folder):
            yield Change(self, self.register())

    def issue(
        self, name: str, *, csr: bytes | None = None, password: bool = False, days: float = MEMBER_DAYS
    ) -> Credentials:
        """Enrol a member: see `Change.issue`."""
        with self.changing() as change:
            credentials = change.issue(name, csr=csr, password=password, days=days)
            change.commit()
        return credentials

    def renew(self, name: str, *, csr: bytes | None = None, days: float = MEMBER_DAYS) -> Credentials:
        """A new certificate, or password, for a member: see `Change.renew`."""
        with self.changing() as change:
            credentials = change.renew(name, csr=csr, days=days)
            change.commit()
        return credentials

    def revoke(self, name: str) -> Member:
        """Let it in no more: see `Change.revoke`."""
        with self.changing() as change:
            member = change.revoke(name)
            change.commit()
        return member

    def issue_server(self, hosts: Sequence[str], *, days: float = SERVER_DAYS) -> ServerCredentials:
        """The broker's certificate: see `Change.issue_server`."""
        with self.changing() as change:
            credentials = change.issue_server(hosts, days=days)
            change.commit()
        return credentials

    def refresh_crl(self) -> bool:
        """Make the list of revoked certificates again where it is missing, behind the register, or old.

        Returns whether it was: then the broker has to read it again.
        """
        with self.changing() as change:
            return change.refresh_crl()

    def read_crl(self) -> x509.CertificateRevocationList | None:
        """The list of revoked certificates, as it stands on disk; None where there is none that can be read."""
        try:
            return x509.load_pem_x509_crl(self.files.crl.read_bytes())
        except (OSError, ValueError):
            return None


class Change:
    """What is to change in the register, while others are kept out; it holds from `commit` on."""

    def __init__(self, authority: Authority, register: Register) -> None:
        self._authority = authority
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
        now = self._authority.now()
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
            older = _revoked(older, self._authority.now())
            self.register = self.register.with_members(dataclasses.replace(before, certificates=older + kept))
            self._number_crl()

    def issue_server(self, hosts: Sequence[str], *, days: float = SERVER_DAYS) -> ServerCredentials:
        """The broker's certificate and key, for all of `hosts` and this machine's own names.

        Raises:
            UsageError: one of them is neither a name nor an address.
        """
        authority = self._authority
        now = authority.now()
        not_after = min(now + dt.timedelta(days=days), authority.ca.not_valid_after_utc)
        key = certificates.new_key()
        names = [*hosts, *(host for host in _LOCAL_HOSTS if host not in hosts)]
        made = authority.signer.server(names, key.public_key(), not_after=not_after)
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
        import difflib  # noqa: PLC0415 - for a complaint alone

        near = difflib.get_close_matches(name, self.register.members, n=1)
        return f"{name} is no member" + (
            f"; did you mean {near[0]}?" if near else ": fedmq device enroll lets one in"
        )

    def commit(self) -> None:
        """Write the register, then the list of revoked certificates where that has changed."""
        write_register(self._authority.files.register, self.register)
        self.refresh_crl()

    def refresh_crl(self) -> bool:
        """Make the list of revoked certificates again where it is missing, behind the register, or old."""
        authority = self._authority
        crl = authority.read_crl()
        if (
            crl is not None
            and _number(crl) == self.register.crl_number
            and self.register.crl_update is not None
        ):
            life = crl.next_update_utc - crl.last_update_utc if crl.next_update_utc else dt.timedelta()
            if crl.last_update_utc + life * (1 - RENEW_BELOW) > authority.now():
                return False
        if (
            crl is None or _number(crl) == self.register.crl_number
        ):  # missing or old: a new number for a new list
            self._number_crl()
            write_register(authority.files.register, self.register)
        now = authority.now()
        assert self.register.crl_update is not None
        made = authority.signer.crl(
            self.register.revoked(now),
            number=self.register.crl_number,
            this_update=self.register.crl_update,
        )
        replace_file(authority.files.crl, certificates.pem(made), mode=0o644)
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
        now = self._authority.now()
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
        signer = self._authority.signer
        not_after = min(now + dt.timedelta(days=days), signer.ca.not_valid_after_utc)
        made = signer.member(name, public_key, now=now, not_after=not_after)
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

    def _number_crl(self) -> None:
        # Of two lists, TLS libraries believe the later one: dates grow by a second at least, however fast they come.
        least = self._authority.now() - dt.timedelta(days=1)
        if self.register.crl_update is not None:
            least = max(least, self.register.crl_update + dt.timedelta(seconds=1))
        self.register = dataclasses.replace(
            self.register, crl_number=self.register.crl_number + 1, crl_update=least.replace(microsecond=0)
        )


def make_folder(folder: Path) -> None:
    """A folder for secrets: nobody else looks into it.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UsageError(f"the folder {folder} cannot be written to")


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
