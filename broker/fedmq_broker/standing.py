"""How a federation's own Mosquitto stands: read from `$SYS` as `@operator`, and from its certificates on disk."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from fedmq_broker.checking.reading import read_file
from fedmq_broker.dynsec_control import ControlError, turn_of_operator
from fedmq_broker.running import running_pid
from fedmq_broker.site import Site
from fedmq_protocol.access import OPERATOR
from fedmq_protocol.aio import BrokerSettings, Connection, Message
from fedmq_protocol.errors import ConnectionFailedError

SOON: Final = dt.timedelta(days=30)
NEAR: Final = 0.8
"""Of a limit: from here on it is named."""
_TOPICS: Final = (
    "version",
    "uptime",
    "clients/connected",
    "clients/maximum",
    "messages/stored",
    "store/messages/bytes",
    "publish/messages/dropped",
    "retained messages/count",
)
_NEEDED: Final = frozenset({"version", "uptime", "clients/connected", "publish/messages/dropped"})
_ANSWER_S: Final = 10.0
_MORE_S: Final = 0.3
_LOCK_S: Final = 30.0
_AUTHORITY: Final = "the authority"


@dataclass(frozen=True)
class Standing:
    """How the broker stands.

    Attributes:
        pid: None where it does not run on this machine, or in a container.
        resident_bytes: memory of that process, where the system tells. Mosquitto's own `heap` is not asked: in 2.0 the
            security plugin makes it wrong.
        why_not: why it could not be asked; empty where it answered.
        counters: what `$SYS/broker` says, by topic.
        expires: when server certificate, authority and list of revoked certificates end, by name.
        troubles: what an operator should see to, a line each.
    """

    pid: int | None
    resident_bytes: int | None
    why_not: str
    counters: Mapping[str, str]
    expires: Mapping[str, dt.datetime]
    troubles: tuple[str, ...]

    @property
    def answers(self) -> bool:
        return not self.why_not

    def number(self, topic: str) -> int | None:
        """A counter of `$SYS/broker`; None where the broker does not tell it."""
        digits = self.counters.get(topic, "").partition(" ")[0]
        return int(digits) if digits.isdigit() else None


async def look(
    site: Site, settings: BrokerSettings, *, resident_limit: int, now: dt.datetime | None = None
) -> Standing:
    """Ask the broker, and read what lies on disk. Nothing raises but a site that is none.

    Args:
        site: its files.
        settings: how `@operator` reaches it.
        resident_limit: what its process is to take at most; `fedmq_broker.sizing.Limits.resident_bytes`.
        now: the time in UTC; for tests.
    """
    now = now or dt.datetime.now(dt.UTC)
    counters: dict[str, str] = {}
    why_not = ""
    try:
        counters = await _counters(settings, site.member(OPERATOR).folder / "lock")
    except (ConnectionFailedError, ControlError) as error:
        why_not = str(error)
    expires = dict(_ends(site))
    pid = running_pid(site)
    standing = Standing(pid, _resident(pid), why_not, counters, expires, ())
    troubles = (*_near_limits(site, standing, resident_limit), *_near_ends(expires, now))
    return dataclasses.replace(standing, troubles=troubles)


async def _counters(settings: BrokerSettings, lock: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    async with turn_of_operator(lock, timeout_s=_LOCK_S):
        connection = Connection(settings, client_id=OPERATOR)
        try:
            await connection.start(wait=True, timeout_s=settings.connect_timeout_s)
            await connection.subscribe([f"$SYS/broker/{topic}" for topic in _TOPICS])
            events = connection.events()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_S) as limit:
                    async for event in events:
                        if isinstance(event, Message):
                            text = event.payload.decode(errors="replace")
                            found[event.topic.removeprefix("$SYS/broker/")] = text
                        if (
                            found.keys() >= _NEEDED
                        ):  # some it tells only after a while: no use in waiting for those
                            limit.reschedule(asyncio.get_running_loop().time() + _MORE_S)
        finally:
            await connection.stop()
    if not found.keys() >= _NEEDED:
        raise ConnectionFailedError("it answers, and says nothing in $SYS: has it just started?")
    return found


def _resident(pid: int | None) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _ends(site: Site) -> Iterator[tuple[str, dt.datetime]]:
    files = site.mosquitto
    for name, path in (("the server's certificate", files.certificate), (_AUTHORITY, files.ca)):
        with contextlib.suppress(OSError, ValueError):
            yield name, x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    with contextlib.suppress(OSError, ValueError):
        end = x509.load_pem_x509_crl(files.crl.read_bytes()).next_update_utc
        if end is not None:
            yield "the list of revoked certificates", end


def _near_ends(expires: Mapping[str, dt.datetime], now: dt.datetime) -> Iterator[str]:
    for name, end in expires.items():
        mend = "fedmq broker renew makes a new one"
        if name == _AUTHORITY:
            mend = "a new site, and every member enrolled anew, is what helps"
        if end < now:
            yield f"{name} expired on {end:%Y-%m-%d}, and nobody comes in: {mend}"
        elif end - now < SOON:
            yield f"{name} expires on {end:%Y-%m-%d}: {mend}"


def _waiting(standing: Standing) -> int | None:
    """Messages that wait for clients, all together: no single queue is longer."""
    stored, retained = standing.number("messages/stored"), standing.number("retained messages/count")
    return None if stored is None or retained is None else max(0, stored - retained)


def _near_limits(site: Site, standing: Standing, resident_limit: int) -> Iterator[str]:
    reading = read_file(site.mosquitto.configuration)
    common = reading.common
    dropped = standing.number("publish/messages/dropped")
    if dropped:
        yield f"{dropped:,} messages were dropped from full queues since its start"
    room = sum(listener.integer("max_connections", 0) for listener in reading.listeners)
    for what, used, limit in (
        ("connections", standing.number("clients/connected"), room),
        ("bytes of memory", standing.resident_bytes, resident_limit),
        ("messages of one client's queue", _waiting(standing), common.integer("max_queued_messages", 0)),
    ):
        if used is not None and limit > 0 and used > NEAR * limit:
            yield f"{used:,} of {limit:,} {what}"
