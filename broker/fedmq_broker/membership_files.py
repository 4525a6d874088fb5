"""Members' files on the operator's side: written beside a member's folder first, then moved in, so that a kill heals.

What lies aside carries a stamp that tells whose credentials these are: the register's newest, then they are moved in by
whoever comes next; or nobody's, then they are cleared away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from fedmq_broker.authority import Credentials, Member, Register, make_folder
from fedmq_broker.authority_register import sync_folder
from fedmq_broker.site import MemberFiles, Site
from fedmq_protocol.errors import UsageError

SettingsOf: TypeAlias = Callable[[str], str]
"""The text of a device's `device.toml`, by its name."""

_STAMP: Final = ".stamp"
_MANY: Final = 8
"""For more members than this, one sync of everything is cheaper than one of each file."""

_SECRETS: Final = ("cert.pem", "key.pem", "password")


def aside(site: Site, name: str) -> MemberFiles:
    """Where a member's files are written before they are its own."""
    return MemberFiles(site.members / f".{name}.part")


def _stamp(member: Member) -> str:
    """What tells a member's newest credentials from all others."""
    return str(member.serial) if member.verifier is None else member.verifier.hash.hex()


def write_aside(site: Site, every: Sequence[Credentials], *, settings: SettingsOf | None = None) -> None:
    """Write what members need beside their folders, durably."""
    make_folder(site.members)
    ca = site.authority.ca.read_bytes()
    texts = {each.member.name: settings(each.member.name) for each in every} if settings else {}
    written: list[Path] = []
    for credentials in every:
        name = credentials.member.name
        files = aside(site, name)
        shutil.rmtree(files.folder, ignore_errors=True)
        make_folder(files.folder)
        password = None if credentials.password is None else f"{credentials.password}\n".encode()
        parts: list[tuple[Path, bytes | None, int]] = [
            (files.folder / "ca.pem", ca, 0o644),
            (files.certificate, credentials.certificate, 0o644),
            (files.key, credentials.key, 0o600),
            (files.password, password, 0o600),
            (files.settings, texts[name].encode() if name in texts else None, 0o644),
            (files.folder / _STAMP, _stamp(credentials.member).encode(), 0o644),
        ]
        for path, data, mode in parts:
            if data is not None:
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                    file.write(data)
                written.append(path)
    if len(every) > _MANY:
        os.sync()
        return
    for path in written:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for folder in {path.parent for path in written}:
        sync_folder(folder)


def put_in_place(site: Site, member: Member) -> None:
    """Move what was written aside to where it belongs; the stamp goes last, so that a second call finishes it."""
    part, files = aside(site, member.name), site.member(member.name)
    if not (part.folder / _STAMP).exists():
        return
    make_folder(files.folder)
    made_key = member.current is not None and member.current.made_key
    new = sorted(path.name for path in part.folder.iterdir() if path.name != _STAMP)
    for name in new:
        (part.folder / name).replace(files.folder / name)
    stale = {"password"} if member.how == "certificate" else {"cert.pem", "key.pem"}
    if member.how == "certificate" and not made_key:
        stale.add("key.pem")
    for name in stale:
        (files.folder / name).unlink(missing_ok=True)
    sync_folder(files.folder)
    shutil.rmtree(part.folder)


def take_secrets(site: Site, name: str) -> None:
    """What a member came in by is of no use any more; its settings stay."""
    for secret in _SECRETS:
        (site.member(name).folder / secret).unlink(missing_ok=True)


def heal(site: Site, register: Register) -> None:
    """Finish, or clear away, what somebody who was killed left beside members' folders."""
    if not site.members.is_dir():
        return
    for folder in site.members.glob(".*.part"):
        name = folder.name.removeprefix(".").removesuffix(".part")
        member = register.members.get(name)
        with contextlib.suppress(OSError):
            if member is not None and member.active and (folder / _STAMP).read_text() == _stamp(member):
                put_in_place(site, member)
                continue
        shutil.rmtree(folder, ignore_errors=True)


def kept_key(site: Site, register: Register, name: str, csr: bytes | None) -> bytes | None:
    """The certificate of a device that keeps its key to itself, for a new one of the same key."""
    member = register.members.get(name)
    if csr is not None or member is None or member.current is None or member.current.made_key:
        return None
    try:
        return site.member(name).certificate.read_bytes()
    except OSError:
        raise UsageError(
            f"{name} keeps its key to itself, and its old certificate is not in {site.member(name).folder}: "
            "name a new request with --csr"
        ) from None


def passwords(site: Site, members: Iterable[Member]) -> dict[str, str]:
    """Those that members come in by, by name; the plugin makes a hash of its own of them.

    Raises:
        UsageError: one is not kept here any more.
    """
    found = {}
    for member in members:
        if member.how == "password":
            try:
                text = site.member(member.name).password.read_text(encoding="utf-8")
            except OSError:
                raise UsageError(
                    f"the password of {member.name} is not in {site.member(member.name).folder} any more: "
                    f"the broker takes it at its next start, or fedmq device renew {member.name} makes another"
                ) from None
            found[member.name] = text.partition("\n")[0]
    return found
