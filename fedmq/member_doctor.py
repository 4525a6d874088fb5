"""A device as its operator's machine sees it: is it a member, what may it do, what does it say of itself, who hears it?

The other side of `fedmq_edge_agent.examining`, by the same words: each check is a finding with its mend.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedmq.config import Configuration
from fedmq.tables import CoordinatorTable, DeviceTable, FederationTable, read
from fedmq_broker import dynsec
from fedmq_broker.authority import Authority, Member, Register
from fedmq_broker.dynsec_control import Control
from fedmq_broker.guarding.quarantine import Quarantine
from fedmq_broker.site import Site
from fedmq_edge_agent.examining.certificates import day, moment, names_of, span
from fedmq_edge_agent.examining.course import Check, examine, in_thread
from fedmq_edge_agent.examining.findings import Finding, failed, fine, skipped, warning
from fedmq_edge_agent.examining.handshake import shown_certificate
from fedmq_edge_agent.shell.settings import MIN_PACKET_BYTES
from fedmq_protocol.access import OPERATOR, device_alone, every_device
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.envelope import open_envelope
from fedmq_protocol.errors import ConnectionFailedError, FedmqError, RemoteError
from fedmq_protocol.messages import Presence
from fedmq_protocol.topics import Topics

_CRL_SOON: Final = dt.timedelta(days=30)
_SERVER_SOON: Final = dt.timedelta(days=30)
_CONNECT_S: Final = 5.0


@dataclass
class Patient:
    """A device, and what the checks so far have learnt of it.

    Attributes:
        name: the device's.
        configuration: the operator's file.
        site: where the authority and the members' files lie.
        live: how `@operator` reaches the broker; None: nothing listens.
        authority: the federation's.
        register: all that it remembers.
        member: the device in it.
        told: the device's own [broker], as its settings on this machine say.
        control: the line to the broker.
        presence: what the broker keeps of it.
    """

    name: str
    configuration: Configuration
    site: Site
    live: BrokerSettings | None
    authority: Authority
    register: Register
    member: Member | None = None
    told: BrokerSettings | None = None
    control: Control | None = None
    presence: Presence | None = None

    @property
    def topics(self) -> Topics:
        return Topics(self.register.federation)

    @property
    def now(self) -> dt.datetime:
        return self.authority.now()


# ------------------------------------------------------------------------------------------- on this machine


async def look_for_member(patient: Patient) -> Finding:
    """Is it enrolled, and was it not thrown out?"""
    member = patient.member = patient.register.members.get(patient.name)
    if member is None:
        return failed(
            f"nobody called {patient.name} was ever enrolled here",
            f"`fedmq device ls` tells who is; `fedmq device enroll {patient.name}` lets it in",
        )
    if member.revoked_at is not None:
        return failed(
            f"it was revoked on {day(member.revoked_at)}",
            f"if that was not meant: `fedmq device enroll {patient.name}`, and flash it again",
        )
    if patient.name in patient.register.pending:
        return warning(
            f"enrolled on {day(member.enrolled_at)}; the broker was not told yet of the latest change",
            "the next `fedmq device` command that reaches the broker tells it, and its next start",
        )
    return fine(f"enrolled on {day(member.enrolled_at)}, comes in by {member.how}")


async def look_at_quarantine(patient: Patient) -> Finding:
    """Was it cut off because it flooded?"""
    cut_off = Quarantine(patient.site.quarantine).active().get(patient.name)
    if cut_off is None:
        return fine("it is not in quarantine")
    if cut_off.times == 0:
        return failed(
            "it was released, and the broker has not been told",
            f"start fedmq broker guard, or `fedmq device release {patient.name}` once more",
        )
    until = dt.datetime.fromtimestamp(cut_off.until, dt.UTC)
    return failed(
        f"it was cut off until {moment(until)}, for the {cut_off.times}. time: {cut_off.why}",
        f"mend what makes it flood; then `fedmq device release {patient.name}` lets it in at once",
    )


async def look_at_certificate(patient: Patient) -> Finding:
    """Is the newest one that it was issued still good, and for long?"""
    assert patient.member is not None
    if patient.member.how == "password":
        return fine("none: it comes in by password")
    current, mend = patient.member.current, f"`fedmq device renew {patient.name}`, and copy it to the device"
    if current is None:
        return failed("all that it was issued have expired", mend)
    if current.revoked_at is not None:
        return failed(f"the newest one was revoked on {day(current.revoked_at)}", mend)
    left = current.not_after - patient.now
    if left <= dt.timedelta():
        return failed(f"it expired on {day(current.not_after)}", mend)
    if patient.authority.is_due(current):
        return warning(f"it ends on {day(current.not_after)}, in {span(left)}", mend)
    return fine(f"until {day(current.not_after)}")


async def look_at_list(patient: Patient) -> Finding:
    """Does the list of revoked certificates hold, and has the broker the same? Without it nobody gets in."""
    ends, reload = (
        patient.authority.crl_not_after(),
        "`fedmq broker reload` makes it anew, and the broker read it",
    )
    if ends is None:
        return failed("there is none, or it cannot be read", reload)
    if ends <= patient.now:
        return failed(f"it ended on {day(ends)}: the broker lets nobody in", reload)
    copy = patient.site.mosquitto.crl
    if not copy.exists() or copy.read_bytes() != patient.authority.files.crl.read_bytes():
        return warning("the broker's copy of it is another one", reload)
    if ends - patient.now < _CRL_SOON:
        return warning(f"it ends on {day(ends)}, and then the broker lets nobody in", reload)
    return fine(f"until {day(ends)}")


async def look_at_settings(patient: Patient) -> Finding:
    """Do the settings that it was given lead to this broker, in this federation, under this name?"""
    path = patient.site.member(patient.name).settings
    if not path.exists():
        return warning(
            f"there is no {path}",
            f"`fedmq device enroll {patient.name}` writes it; or name its own to the device",
        )
    try:
        given = read(path, environ={})
        device, broker = given.table("device", DeviceTable), given.table("broker", BrokerSettings)
        federation = given.table("federation", FederationTable).name
    except FedmqError as error:
        return failed(str(error), f"correct it, or enroll {patient.name} again")
    patient.told = broker
    if device.id != patient.name:
        return failed(f"{path} is for {device.id}", f"set id = {patient.name!r} in its [device]")
    if federation != patient.register.federation:
        return failed(
            f"{path} is for the federation {federation}, and this one is {patient.register.federation}",
            "set name in its [federation]",
        )
    if device.task is None:
        return warning(f"{path} names no task", "set task in its [device], or name one when it is flashed")
    return fine(f"{broker.shown_url}, {device.task}")


# -------------------------------------------------------------------------------------------- at the broker


async def look_at_broker(patient: Patient) -> Finding:
    """Does it run, does it let @operator in, and is its certificate good for the name that the device was told?"""
    if patient.live is None:
        return failed(
            "nothing listens where it should be", "`fedmq broker start`; `fedmq broker status` tells more"
        )
    lock = patient.site.member(OPERATOR).folder / "lock"
    control = Control(patient.live, lock=lock, timeout_s=_CONNECT_S)
    try:
        await control.__aenter__()
    except ConnectionFailedError as error:
        found, _, mend = str(error).rpartition(": ")
        return failed(found or mend, f"{mend}; `fedmq broker status`, and its log, tell more")
    patient.control = control
    shown = await in_thread(shown_certificate, patient.live)
    if shown is None:
        return fine(f"{patient.live.address} lets {OPERATOR} in")
    newest = patient.register.server[-1] if patient.register.server else None
    if newest is not None and shown.serial_number != newest.serial:
        return warning("it still shows an older certificate than the newest it has", "`fedmq broker reload`")
    left = shown.not_valid_after_utc - patient.now
    if left < _SERVER_SOON:
        return warning(
            f"its certificate ends in {span(left)}", "`fedmq broker init` renews it, then `reload`"
        )
    host, names = (patient.told.host if patient.told else ""), names_of(shown)
    if host and host not in names:
        return failed(
            f"its certificate is for {', '.join(names)}, and the device was told to go to {host}",
            f"add {host!r} to `hosts` in [mosquitto], then `fedmq broker init` and `reload`; or give it another "
            "url",
        )
    return fine(
        f"{patient.live.address} lets {OPERATOR} in; its certificate names {host or ', '.join(names)}"
    )


async def look_at_access(patient: Patient) -> Finding:
    """Does the running broker know it, with just the rights that the protocol gives a device?"""
    control, name = patient.control, patient.name
    assert control is not None
    mend = "`fedmq broker reload` makes the broker agree with the register"
    client = await control.client(name)
    if client is None:
        return failed("the broker's security plugin does not know it", mend)
    if client.get("disabled"):
        return failed("it is disabled in the broker's security plugin", f"enable it: {mend}")
    has = {str(each.get("rolename")) for each in client.get("roles", [])}
    wanted = {str(each["rolename"]) for each in dynsec.roles_of(name)}
    if wanted - has:
        return failed(f"it lacks the role {', '.join(sorted(wanted - has))} at the broker", mend)
    roles: Mapping[str, list[dict[str, Any]]] = {
        name: dynsec.acls(device_alone(patient.topics, name)),
        dynsec.EVERY_DEVICE: dynsec.acls(every_device(patient.topics)),
    }
    lacks, more = [], [f"the role {role}" for role in sorted(has - wanted)]
    for role, acls in roles.items():
        found = await control.role(role)
        known = _pairs(found.get("acls", []) if found else [])
        lacks += sorted(_pairs(acls) - known)
        more += [f"{what} {topic}" for what, topic in sorted(known - _pairs(acls))]
    if lacks:
        what, topic = lacks[0]
        rest = f", and {len(lacks) - 1} more" if len(lacks) > 1 else ""
        return failed(f"it lacks rights: {what} {topic}{rest}", mend)
    if more:
        return warning(f"it has more rights than a device's: {', '.join(more[:3])}", mend)
    return fine("it may speak as itself, hear what is said to it, and nothing else")


def _pairs(acls: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    return {(str(each["acltype"]), str(each["topic"])) for each in acls if each.get("allow")}


async def look_at_packets(patient: Patient) -> Finding:
    """Does the broker take packets as large as the device may send?"""
    assert patient.control is not None
    limit = patient.control.max_packet_bytes
    if limit is None:
        return fine("the broker names no limit")
    if limit < MIN_PACKET_BYTES:
        return failed(
            f"the broker takes {limit:,} bytes at most, and {MIN_PACKET_BYTES:,} is the least",
            "raise max_packet_size: `fedmq broker check` says to what",
        )
    if patient.told is not None and limit < patient.told.max_packet_bytes:
        return warning(
            f"the broker takes {limit:,} bytes, and the device could send {patient.told.max_packet_bytes:,}: large "
            "updates go in smaller pieces",
            "raise max_packet_size: `fedmq broker check` says to what",
        )
    return fine(f"the broker takes {limit:,} bytes")


async def look_at_presence(patient: Patient) -> Finding:
    """What does the broker keep of it: is it connected, and what does it say of itself?"""
    assert patient.control is not None
    topic = patient.topics.presence(patient.name)
    kept = await patient.control.retained([topic])
    if topic not in kept:
        return warning(
            "the broker keeps no word of it: it was never here",
            "is it on, and in the network? On the device: `fedmq agent doctor`",
        )
    try:
        body = open_envelope(topic, kept[topic]).body
    except RemoteError as error:
        return failed(f"what the broker keeps as its presence is none: {error}", "restart the agent there")
    if not isinstance(body, Presence):
        return failed("something else stands in its presence's place", "restart the agent there")
    patient.presence = body
    if not body.online:
        how = "said goodbye" if body.traffic is not None else "was cut off (its last will)"
        why = f"; it said: {body.problem}" if body.problem else ""
        return warning(
            f"it is not connected: it {how}{why}",
            "is it on, and in the network? On the device: `fedmq agent doctor`",
        )
    if body.problem:
        return warning(f"it is connected, and cannot train: {body.problem}", "mend that on the device")
    tasks = ", ".join(f"{task.name} {task.version}" for task in body.tasks) or "no task yet"
    count = "" if body.num_examples is None else f", {body.num_examples:,} examples"
    return fine(f"connected, agent {body.agent_version}, {tasks}{count}")


# ---------------------------------------------------------------------------------------- at the coordinator


async def look_at_coordinator(patient: Patient) -> Finding:
    """What does the coordinator on this machine know of it?"""
    try:
        from fedmq_coordinator.shell.client import Client, NoCoordinatorError
    except ImportError:
        return skipped("the coordinator is not installed on this machine")
    state_dir = patient.configuration.table("coordinator", CoordinatorTable).state_dir

    def ask() -> dict[str, Any]:
        with Client(state_dir) as client:
            views = {view.device: view for view in client.devices()}
        return views[patient.name].model_dump() if patient.name in views else {}

    try:
        view = await asyncio.to_thread(ask)
    except NoCoordinatorError:
        return skipped(f"none runs on this machine with its state in {state_dir}")
    except FedmqError as error:
        return failed(str(error), "look at the coordinator's log")
    return _judged(patient, view)


def _judged(patient: Patient, view: Mapping[str, Any]) -> Finding:
    if not view:
        if patient.presence is not None and patient.presence.online:
            return failed(
                "it has not heard of this device, which is connected to the broker",
                "is it at the same broker, and in the same federation? Look at its log",
            )
        return fine("it has not heard of this device yet")
    since = span(dt.timedelta(seconds=view["since_s"]))
    lease = (
        ""
        if view["lease_age_s"] is None
        else f", holds a lease since {span(dt.timedelta(seconds=view['lease_age_s']))}"
    )
    said = f"{view['state']} for {since}{lease}, {view['updates']} updates so far"
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(view["rejections"].items()))
    if view["problem"]:
        return failed(f"{said}; {view['problem']}", "mend that on the device: `fedmq agent doctor` there")
    if "bad-signature" in view["rejections"]:
        return failed(
            f"{said}; it refused what is signed by another key than the one it knows this device by",
            "was the device's state folder lost? Put its key back, or enroll it under a new name",
        )
    if refused:
        return warning(f"{said}; refused: {refused}", "look at the coordinator's log, and at the device's")
    return fine(said)


CHECKS: Final[tuple[Check[Patient], ...]] = (
    Check("member", look_for_member),
    Check("quarantine", look_at_quarantine, needs=("member",)),
    Check("certificate", look_at_certificate, needs=("member",)),
    Check("settings", look_at_settings, needs=("member",)),
    Check("revocations", look_at_list),
    Check("broker", look_at_broker, limit_s=15.0),
    Check("access", look_at_access, needs=("member", "quarantine", "broker"), limit_s=10.0),
    Check("packets", look_at_packets, needs=("broker",)),
    Check("presence", look_at_presence, needs=("member", "broker")),
    Check("coordinator", look_at_coordinator, needs=("member",), limit_s=10.0),
)
"""Every check, in order."""


async def examined(
    name: str,
    configuration: Configuration,
    site: Site,
    live: BrokerSettings | None,
    *,
    begun: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Finding]:
    """Examine a device from here; each finding comes as soon as it is there.

    Raises:
        UsageError: there is no authority here.
    """
    authority = Authority.open(site.authority.folder)
    patient = Patient(name, configuration, site, live, authority, authority.register())
    try:
        async for finding in examine(CHECKS, patient, begun=begun):
            yield finding
    finally:
        if patient.control is not None:
            await patient.control.__aexit__(None, None, None)
