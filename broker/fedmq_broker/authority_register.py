"""Who is a member, on disk: one JSON file that is replaced as a whole, so that a kill leaves the old one or the new.

It is the truth. What the broker reads is made from it, and may be thrown away and made again. `pending` names the
members whose change the broker may not know of yet: written in the same stroke as the change, and taken out when the
broker has it, so that whoever is killed in between is finished by the next one.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime as dt
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

from fedmq_protocol.access import ROLES
from fedmq_protocol.errors import StoreError, UsageError

FORMAT: Final = 1
_LOCK_POLL_S: Final = 0.05


@dataclass(frozen=True)
class Issued:
    """One certificate that the authority signed.

    Attributes:
        key_id: SHA-256 of its public key.
        made_key: whether the private key was made here, and not by the device.
    """

    serial: int
    issued_at: dt.datetime
    not_after: dt.datetime
    key_id: str
    made_key: bool
    revoked_at: dt.datetime | None = None


@dataclass(frozen=True)
class Verifier:
    """By which Mosquitto's plugin knows a password: PBKDF2 with SHA-512, RFC 8018."""

    salt: bytes
    iterations: int
    hash: bytes


@dataclass(frozen=True)
class Member:
    """A device, or one of the roles.

    Attributes:
        how: by what it comes in.
        revoked_at: since when it may not; None as long as it may.
        certificates: all that were issued to it and have not expired, the newest last.
        verifier: of its password, where it has one.
    """

    name: str
    how: Literal["certificate", "password"]
    enrolled_at: dt.datetime
    revoked_at: dt.datetime | None = None
    certificates: tuple[Issued, ...] = ()
    verifier: Verifier | None = field(default=None, repr=False)

    @property
    def role(self) -> str:
        """`device`, or the role's own name."""
        return self.name if self.name in ROLES else "device"

    @property
    def active(self) -> bool:
        """Whether it may come in, as far as the register goes: its certificate may have expired."""
        return self.revoked_at is None

    @property
    def current(self) -> Issued | None:
        """Its newest certificate."""
        return self.certificates[-1] if self.certificates and self.how == "certificate" else None

    @property
    def serial(self) -> int | None:
        """Of its newest certificate."""
        return None if self.current is None else self.current.serial

    @property
    def not_after(self) -> dt.datetime | None:
        """When its newest certificate expires; None where it comes in by password."""
        return None if self.current is None else self.current.not_after


@dataclass(frozen=True)
class Register:
    """All that the authority has to remember.

    Attributes:
        server: the broker's own certificates, the newest last.
        hosts: those that the newest of them names.
        crl_number: of the newest list of revoked certificates.
        crl_update: its date; each list's is later than the one's before.
        pending: names whose change the broker may not know of.
    """

    federation: str
    members: Mapping[str, Member] = field(default_factory=dict)
    server: tuple[Issued, ...] = ()
    hosts: tuple[str, ...] = ()
    crl_number: int = 0
    crl_update: dt.datetime | None = None
    pending: frozenset[str] = frozenset()

    def with_members(self, *members: Member) -> Register:
        """The same with these members put in, or replaced; the broker is to hear of what concerns it.

        A new certificate beside the old ones does not: the plugin knows names alone, and ends a session when it
        hears its name.
        """
        names = {member.name: member for member in members}
        heard = {
            name
            for name, member in names.items()
            if name not in self.members or _known_to_broker(self.members[name]) != _known_to_broker(member)
        }
        return dataclasses.replace(self, members={**self.members, **names}, pending=self.pending | heard)

    def revoked(self, now: dt.datetime) -> list[tuple[int, dt.datetime]]:
        """(serial, when) of all revoked certificates that have not expired by themselves, by serial."""
        every = [
            *self.server,
            *(one for member in self.members.values() for one in member.certificates),
        ]
        return sorted(
            (one.serial, one.revoked_at)
            for one in every
            if one.revoked_at is not None and one.not_after > now
        )


def _known_to_broker(member: Member) -> tuple[bool, Verifier | None, frozenset[int]]:
    """What of a member decides whether a session of it may go on."""
    revoked = frozenset(one.serial for one in member.certificates if one.revoked_at is not None)
    return member.active, member.verifier, revoked


def read_register(path: Path) -> Register:
    """Read it.

    Raises:
        UsageError: there is none.
        StoreError: it is damaged, or of another version.
    """
    try:
        plain = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"there is no authority in {path.parent}: fedmq broker init makes one") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"the register of members {path} cannot be read: {error}") from None
    try:
        if plain["format"] != FORMAT:
            raise StoreError(f"{path} is of format {plain['format']}, and this fedmq knows {FORMAT}")
        return _register_of(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the register of members {path} is damaged: {error!r}") from None


def write_register(path: Path, register: Register) -> None:
    """Replace it, durably."""
    text = json.dumps({"format": FORMAT, **_plain(register)}, indent=1, sort_keys=True)
    replace_file(path, text.encode(), mode=0o600)


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """Put a file there as a whole, durably: a kill or a power cut leaves the old one or the new.

    Who owned the old one owns the new one, where this process may say so.
    """
    part = path.with_name(f".{path.name}.part")
    with contextlib.suppress(FileNotFoundError):
        part.unlink()  # of somebody who was killed; its mode might be another
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        with contextlib.suppress(OSError):
            before = path.stat()
            os.fchown(descriptor, before.st_uid, before.st_gid)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make sure of the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> IO[bytes]:
    """A file to lock, which nobody else may: who holds the lock keeps everybody waiting."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


@contextlib.contextmanager
def locked(folder: Path, *, timeout_s: float = 60.0) -> Iterator[None]:
    """Keep other operators out while a change is made.

    Raises:
        UsageError: somebody else has been at it for so long.
    """
    with open_lock(folder / "lock") as file:
        give_up_at = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise UsageError(
                        f"somebody else has been changing the members in {folder} for {timeout_s:g} s: try again"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        yield


# ------------------------------------------------------------------------------------------------- as JSON


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    match value:
        case dt.datetime():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case bool():
            return value
        case int() if value.bit_length() > 53:  # noqa: PLR2004 - more than a double holds
            return hex(value)
        case tuple():
            return [_plain(each) for each in value]
        case frozenset():
            return sorted(value)
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case _ if dataclasses.is_dataclass(value):
            return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        case _:
            return value


def _register_of(plain: dict[str, Any]) -> Register:
    return Register(
        federation=plain["federation"],
        members={name: _member_of(each) for name, each in plain["members"].items()},
        server=tuple(map(_issued_of, plain["server"])),
        hosts=tuple(plain["hosts"]),
        crl_number=plain["crl_number"],
        crl_update=_time_of(plain["crl_update"]),
        pending=frozenset(plain["pending"]),
    )


def _member_of(plain: dict[str, Any]) -> Member:
    verifier = plain["verifier"]
    return Member(
        name=plain["name"],
        how=plain["how"],
        enrolled_at=dt.datetime.fromisoformat(plain["enrolled_at"]),
        revoked_at=_time_of(plain["revoked_at"]),
        certificates=tuple(map(_issued_of, plain["certificates"])),
        verifier=None
        if verifier is None
        else Verifier(
            base64.b64decode(verifier["salt"]), verifier["iterations"], base64.b64decode(verifier["hash"])
        ),
    )


def _issued_of(plain: dict[str, Any]) -> Issued:
    serial = plain["serial"]
    return Issued(
        serial=serial if isinstance(serial, int) else int(serial, 16),
        issued_at=dt.datetime.fromisoformat(plain["issued_at"]),
        not_after=dt.datetime.fromisoformat(plain["not_after"]),
        key_id=plain["key_id"],
        made_key=plain["made_key"],
        revoked_at=_time_of(plain["revoked_at"]),
    )


def _time_of(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)
