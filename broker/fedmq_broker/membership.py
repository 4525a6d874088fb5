"""Devices let in, renamed and thrown out: authority, files and broker in one stroke that a kill cannot leave half done.

Each change goes in this order, under the authority's lock:

1. what the member needs is written into a folder beside its own;
2. the register is replaced: from here on the change holds, and the register says that the broker is yet to hear of it;
3. the member's files are moved into place;
4. the broker hears of it. Where it runs: the list of revoked certificates, SIGHUP, then the security plugin, live.
   Where it does not: the plugin's file;
5. the register notes that.

Whoever is killed in between is finished by the next call, or by the broker's next start. A revoked member is kept out
by two things, each enough by itself: its certificate is on the list, and the plugin knows it no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography import x509

from fedmq_broker import dynsec
from fedmq_broker.authority import MEMBER_DAYS, Authority, Change, Credentials, Register, make_folder
from fedmq_broker.authority_certificates import key_pem, new_key, pem
from fedmq_broker.authority_register import replace_file
from fedmq_broker.dynsec_control import Control, ControlError, Progress, is_listening
from fedmq_broker.membership_files import (
    SettingsOf,
    heal,
    kept_key,
    passwords,
    put_in_place,
    take_secrets,
    write_aside,
)
from fedmq_broker.running import running_pid
from fedmq_broker.site import Site
from fedmq_protocol.access import OPERATOR, ROLES
from fedmq_protocol.aio import Connection
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConnectionFailedError, UsageError
from fedmq_protocol.topics import Topics, check_id

_MOMENT: Final = dt.timedelta(minutes=2)
_REREAD_S: Final = 0.25
"""Mosquitto takes a signal when it comes round to it. Who was cut off before that could be back at once, if mute."""


_ELSEWHERE: Final = (
    "Mosquitto runs, but does not listen where [mosquitto] says: fedmq broker stop, and start it again"
)


@dataclass(frozen=True)
class Applied:
    """How a change got to the broker.

    Attributes:
        how: `live`, it runs and holds to it; `stopped`, it does not run, and its next start takes it; `later`, it could
            not be told, and is at the next command that reaches it, or at its next start.
        note: what else the operator should know, one line.
    """

    how: Literal["live", "stopped", "later"]
    note: str = ""


async def enrol(
    site: Site,
    names: Sequence[str],
    *,
    live: BrokerSettings | None,
    csr: bytes | None = None,
    password: bool = False,
    days: float = MEMBER_DAYS,
    settings: SettingsOf | None = None,
    progress: Progress | None = None,
) -> tuple[list[Credentials], Applied]:
    """Let devices in: all of them, or none.

    Args:
        site: where everything lies.
        names: who.
        live: how `@operator` reaches the broker; None writes files alone.
        csr: a certificate signing request, of a single device that made its own key.
        password: by password, and not by certificate.
        days: how long certificates hold.
        settings: what goes into their `device.toml`.
        progress: told how many of how many a running broker knows of.

    Raises:
        UsageError: a name is not usable or taken; nobody was enrolled.
    """
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise UsageError(f"{', '.join(twice)} is named twice")
    with _authority(site).changing() as change:
        heal(site, change.register)
        made = [change.issue(name, csr=csr, password=password, days=days) for name in names]
        write_aside(site, made, settings=settings)
        change.commit()
        for credentials in made:
            put_in_place(site, credentials.member)
        return made, await _apply(site, change, live, progress)


async def renew(
    site: Site,
    name: str,
    *,
    live: BrokerSettings | None,
    csr: bytes | None = None,
    days: float = MEMBER_DAYS,
    revoke_old: bool = False,
) -> tuple[Credentials, Applied]:
    """Issue a member a new certificate, or a new password.

    Args:
        site: where everything lies.
        name: whose.
        live: how `@operator` reaches the broker; None writes files alone.
        csr: where the device made a new key. Without one it keeps the key that it made, or gets a new one from here.
        days: how long the certificate holds.
        revoke_old: take the older certificates away at once. Otherwise they hold until they expire, so that the device
            is not cut off before it has the new one.

    Raises:
        UsageError: it is no member.
    """
    with _authority(site).changing() as change:
        heal(site, change.register)
        credentials = change.renew(
            name, csr=csr, days=days, same_key_as=kept_key(site, change.register, name, csr)
        )
        if revoke_old:
            change.revoke_older(name)
        write_aside(site, [credentials])
        change.commit()
        put_in_place(site, credentials.member)
        return credentials, await _apply(site, change, live)


async def rename(
    site: Site,
    old: str,
    new: str,
    *,
    live: BrokerSettings | None,
    csr: bytes | None = None,
    days: float = MEMBER_DAYS,
    settings: SettingsOf | None = None,
) -> tuple[Credentials, Applied]:
    """Give a device another name: the new one is enrolled, the old one revoked, in one stroke.

    Raises:
        UsageError: the old one is no device, or the new name is taken, not usable or the old one.
    """
    with _authority(site).changing() as change:
        heal(site, change.register)
        before = change.active(old)
        if before.role in ROLES:
            raise UsageError(f"{old} is a role, not a device: it keeps its name")
        if check_id(new, what="device") == old:
            raise UsageError(f"{old} is called that already")
        kept = kept_key(site, change.register, old, csr)
        change.revoke(old)
        credentials = change.issue(
            new, csr=csr, password=before.how == "password", days=days, same_key_as=kept
        )
        write_aside(site, [credentials], settings=settings)
        change.commit()
        put_in_place(site, credentials.member)
        take_secrets(site, old)
        return credentials, await _apply(site, change, live)


async def revoke(site: Site, names: Sequence[str], *, live: BrokerSettings | None) -> Applied:
    """Throw members out, at once and for good: a name may be enrolled anew, a key may not.

    Raises:
        UsageError: one of them was never a member; then nobody is revoked.
    """
    with _authority(site).changing() as change:
        heal(site, change.register)
        for name in names:
            if name == OPERATOR:
                raise UsageError(
                    f"{OPERATOR} is who revokes: fedmq device renew {OPERATOR} --revoke-old makes it a new "
                    "certificate, and takes the old ones away"
                )
            change.revoke(name)
        change.commit()
        for name in names:
            take_secrets(site, name)
        return await _apply(site, change, live)


async def settle(site: Site, *, live: BrokerSettings | None) -> Applied:
    """Finish what somebody who was killed left undone."""
    with _authority(site).changing() as change:
        heal(site, change.register)
        change.refresh_crl()
        return await _apply(site, change, live)


# ----------------------------------------------------------------------------------- setting up and starting


def prepare(site: Site, federation: str, hosts: Sequence[str], *, renew: bool = False) -> list[str]:
    """Make whatever a site still lacks: the authority, the server's certificate, those of the roles.

    What is there and holds stays as it is; a certificate is made anew where less than a third of its life is left, and
    the server's where it does not name all of `hosts`. Safe at any time: a running broker takes it at SIGHUP.

    Args:
        site: where everything lies.
        federation: its name; must be the authority's.
        hosts: names and addresses of the broker.
        renew: make new certificates of the server and the roles whether due or not.

    Returns:
        What was made, a line each.

    Raises:
        UsageError: the site is another federation's, a host cannot be one, or a folder cannot be written.
    """
    made: list[str] = []
    make_folder(site.members)
    with contextlib.suppress(FileExistsError):
        site.mosquitto.folder.mkdir(mode=0o700, parents=True)
    if not site.authority.register.exists():
        Authority.create(site.authority.folder, federation)
        made.append(
            f"an authority of its own in {site.authority.folder}: keep its ca.key safe, it makes members"
        )
    authority = Authority.open(site.authority.folder)
    if authority.federation != federation:
        raise UsageError(
            f"{site.authority.folder} is the authority of {authority.federation}, not of {federation}: "
            "name another folder in [mosquitto]"
        )
    with authority.changing() as change:
        heal(site, change.register)
        if renew or _server_is_due(site, authority, change.register, hosts):
            server = change.issue_server(hosts)
            change.commit()
            replace_file(site.mosquitto.key, server.key, mode=0o600)
            replace_file(site.mosquitto.certificate, server.certificate, mode=0o644)
            made.append(f"a certificate of the broker, for {', '.join(hosts)}")
        for role in ROLES:
            member = change.register.members.get(role)
            if member is None or not member.active:
                credentials = change.issue(role)
            elif renew or authority.is_due(member.current) or not site.member(role).key.exists():
                credentials = change.renew(role)
            else:
                continue
            write_aside(site, [credentials])
            change.commit()
            put_in_place(site, credentials.member)
            made.append(f"a certificate of {role}")
        change.refresh_crl()
        _copy_trust(site)
    return made


def render_files(site: Site) -> None:
    """Write all that a broker reads at its start, from the register. It must not run: what it kept live is replaced.

    Raises:
        UsageError: there is no authority.
    """
    with _authority(site).changing() as change:
        heal(site, change.register)
        change.refresh_crl()
        _copy_trust(site)
        _write_dynsec(site, change)


def signal_reload(site: Site) -> bool:
    """Have a Mosquitto that runs on this machine read its certificates and its list of revoked ones again.

    Returns whether it was told; nobody is cut off by it.
    """
    pid = running_pid(site)
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------ telling the broker


async def _apply(
    site: Site, change: Change, live: BrokerSettings | None, progress: Progress | None = None
) -> Applied:
    if not site.mosquitto.folder.is_dir():
        return Applied("stopped")
    reread = _copy_trust(site)
    try:
        running = live is not None and await is_listening(live)
    except ConnectionFailedError as error:
        return Applied("later", str(error))
    if live is None or not running:
        if running_pid(site) is not None:
            signal_reload(site)
            return Applied("later", _ELSEWHERE)
        _write_dynsec(site, change)
        return Applied("stopped")
    register = change.register
    pending = [register.members[name] for name in sorted(register.pending) if name in register.members]
    gone = [member.name for member in pending if not member.active]
    note = ""
    if reread or gone:
        if signal_reload(site):
            await asyncio.sleep(_REREAD_S)
        else:
            note = (
                "Mosquitto could not be told to read the list of revoked certificates again: send it SIGHUP "
                "(fedmq broker reload where it runs, docker compose kill -s HUP broker for a container)"
            )
    if not pending:
        return Applied("live", note)
    topics = Topics(register.federation)
    try:
        async with Control(live, lock=site.member(OPERATOR).folder / "lock") as control:
            # Its own session is the one that we talk in: it has pushed out any other, and to be told of would end it.
            active = [member for member in pending if member.active and member.name != OPERATOR]
            await control.add(active, topics, passwords=passwords(site, active), progress=progress)
            await _let_say_goodbye(site, live, [name for name in gone if name not in ROLES])
            await control.remove(gone)
            await control.clear_retained(topics.presence(name) for name in gone if name not in ROLES)
    except (ConnectionFailedError, ControlError, UsageError) as error:
        return Applied("later", str(error))
    change.known_to_broker(member.name for member in pending)
    change.commit()
    return Applied("live", note)


async def _let_say_goodbye(site: Site, live: BrokerSettings, names: Sequence[str]) -> None:
    """Have the broker publish the last wills of devices that are about to go: the plugin would end them without.

    The coordinator would go on waiting for them. A second session of the same name ends the first as if its connection
    had broken; so we come in for a moment as each, by a certificate that nobody else ever sees.
    """
    authority = _authority(site)
    for name in names:
        key, now = new_key(), authority.now()
        made = authority.signer.member(name, key.public_key(), now=now, not_after=now + _MOMENT)
        with tempfile.TemporaryDirectory(prefix=".goodbye-", dir=site.members) as folder:
            certificate, own_key = Path(folder) / "cert.pem", Path(folder) / "key.pem"
            replace_file(certificate, pem(made), mode=0o600)
            replace_file(own_key, key_pem(key), mode=0o600)
            settings = live.model_copy(update={"cert_file": certificate, "key_file": own_key})
            connection = Connection(settings, client_id=name)
            with contextlib.suppress(ConnectionFailedError):
                await connection.start(wait=True)
            await connection.stop()


def _write_dynsec(site: Site, change: Change) -> None:
    register = change.register
    rendered = dynsec.render(register.members.values(), Topics(register.federation))
    text = json.dumps(rendered, indent=1)
    replace_file(site.mosquitto.dynamic_security, text.encode(), mode=0o600)
    change.known_to_broker(register.pending)
    change.commit()


def _copy_trust(site: Site) -> bool:
    """Copy the authority's certificate and its list to where Mosquitto reads them; whether that changed anything."""
    changed = False
    for source, copy in ((site.authority.ca, site.mosquitto.ca), (site.authority.crl, site.mosquitto.crl)):
        data = source.read_bytes()
        if not copy.exists() or copy.read_bytes() != data:
            replace_file(copy, data, mode=0o644)
            changed = True
    return changed


def _authority(site: Site) -> Authority:
    return Authority.open(site.authority.folder)


def _server_is_due(site: Site, authority: Authority, register: Register, hosts: Sequence[str]) -> bool:
    newest = register.server[-1] if register.server else None
    if newest is None or authority.is_due(newest) or set(register.hosts) != set(hosts):
        return True
    try:
        found = x509.load_pem_x509_certificate(site.mosquitto.certificate.read_bytes())
    except (OSError, ValueError):
        return True
    return found.serial_number != newest.serial or not site.mosquitto.key.exists()
