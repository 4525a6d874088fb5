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
import datetime as dt
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedmq_broker import authority_certificates as certificates
from fedmq_broker.authority_change import (
    MEMBER_DAYS,
    RENEW_BELOW,
    SERVER_DAYS,
    Change,
    Clock,
    Credentials,
    ServerCredentials,
    read_crl,
)
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
from fedmq_protocol.errors import StoreError, UsageError
from fedmq_protocol.topics import check_id

__all__ = [
    "MEMBER_DAYS",
    "Authority",
    "Change",
    "Credentials",
    "Issued",
    "Member",
    "Register",
    "Verifier",
    "make_folder",
]

CA_DAYS: Final = 20 * 365


def _system_clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


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
            yield Change(self.files, self.signer, self.register(), self._clock)

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
        return read_crl(self.files.crl)


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
