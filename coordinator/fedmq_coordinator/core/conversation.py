"""What devices say, and what is answered: presence, updates and their receipts, reports, requests for chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.dedupe import Outcome
from fedmq_coordinator.core.desk import Desk
from fedmq_coordinator.core.devices import FLOOD, Device
from fedmq_coordinator.core.floods import Flood, Floodgate
from fedmq_coordinator.core.inbox import Heard, UnknownSenderError, hear
from fedmq_coordinator.core.intake import judge, largest_update, refused
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.strategies import Strategy
from fedmq_coordinator.core.uploads import Uploads
from fedmq_protocol.codecs import versioned
from fedmq_protocol.codecs.seeded import NAME as SEEDED
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_COUNTER, RECEIPT_DIGEST_BYTES
from fedmq_protocol.messages import (
    Get,
    Hello,
    Notice,
    Offer,
    Presence,
    Receipt,
    Report,
    Status,
    Update,
    UpdateHeader,
    UploadChunk,
)
from fedmq_protocol.replays import OldEpochError, ReplayError

_STATUS_EVERY_S: Final = 10.0
"""All devices hear a status that one has asked for, so that no other need be said for so long."""
_PAUSE_S: Final = 10.0
_PAUSE_MAX_S: Final = 600.0
_UPLOAD_BUDGET_BYTES: Final = 16 * 1024 * 1024
_UPLOAD_BUDGET: Final = 0.5
"""Bytes an element of the model: uploads that are half here take an eighth of it, if that is more."""
_LASTING: Final = 25
"""Messages that one counts as which is journaled or logged, and got nobody further: so of those two a second remain."""
_HONEST_REASONS: Final = frozenset({"too-old", "no-lease"})
"""Why an update of a device in good order may be refused; any other reason pauses the device."""


class Conversation:
    """Hears devices out. Whatever is wrong is counted, said once, and disturbs nothing else.

    Args:
        desk: what it works on.
        strategy: gives the strategy of a run, which weighs its updates.
        grant_again: says to a device once more which lease it holds.
    """

    def __init__(
        self,
        desk: Desk,
        strategy: Callable[[Run], Strategy],
        grant_again: Callable[[Run, str], None],
    ) -> None:
        self._desk = desk
        self._strategy = strategy
        self._grant_again = grant_again
        self._failures: dict[str, int] = {}
        self._uploads = Uploads()
        self._gate = Floodgate()
        self._heard_bytes = 0
        self._status_due_at = 0.0
        self.rejections: dict[str, int] = {}

    def forget_uploads(self, *, but_of: str | None) -> None:
        """The runs that they were for are over, but for this one."""
        self._uploads.forget(but_of=but_of)

    def ignores(self, event: e.PacketArrived, *, now: float) -> bool:
        """Whether it comes from a device that floods; then it is counted, and that is all."""
        if not self._gate.floods:
            return False
        device = self._desk.topics.owner(event.topic)
        return device is not None and self._gate.ignores(device, event, now=now)

    def hear(self, event: e.PacketArrived) -> None:
        """Hear a packet, unless its device has said too much."""
        owner = self._desk.topics.owner(event.topic)
        if owner is not None:
            match self._gate.admit(owner, event, now=self._desk.now):
                case "taken":
                    self._heard_bytes = len(event.payload)
                case "dropped":
                    return
                case "flood":
                    self._flooded(owner, self._gate.floods[owner])
                    return
        if event.payload:
            self._hear(event)

    @property
    def floods(self) -> Mapping[str, Flood]:
        """Of devices of which nothing is read."""
        return self._gate.floods

    def next_flood_end(self) -> float | None:
        """When `end_floods` should be called at the latest."""
        return self._gate.next_end()

    def end_floods(self) -> None:
        """Hear devices again that are quiet; say once more which are not."""
        for name, flood in self._gate.ended(now=self._desk.now):
            device = self._desk.state.devices.get(name)
            self._desk.note("info", f"{name} floods no more: {flood}", device=name, reason="flood")
            if device is not None:
                device.flood = ""
                self._desk.roster.touch(name)
            if flood.presence is not None and flood.presence.payload:
                self._hear(flood.presence)
            if device is not None and device.online:
                self._ask_anew(device)
        for name, flood in self._gate.untold(now=self._desk.now):
            log = self._desk.now >= flood.logged_at + self._gate.limits.quiet_s
            self._tell_of_flood(name, flood, log=log)

    def _ask_anew(self, device: Device) -> None:
        """It may be there or long gone: who put it out did so without its last will. If it is there, it comes again."""
        device.online, device.since, device.gone_by = False, self._desk.now, FLOOD
        self._desk.roster.touch(device.id)
        least = min(max(device.session, device.replays.epoch) + 1, MAX_COUNTER)
        detail = f"this device flooded the coordinator, and is believed from session {least} on"
        notice = Notice(code="flood", detail=detail, session=least)
        self._desk.send(self._desk.topics.down(device.id, "notice"), notice)

    def _flooded(self, name: str, flood: Flood) -> None:
        """Nothing is read of this device from now on: nobody waits for it, and the operator is told."""
        self.rejections["flood"] = self.rejections.get("flood", 0) + 1
        self._tell_of_flood(name, flood, log=True)
        device = self._desk.state.devices.get(name)
        if device is None:
            return
        device.refuse("flood")
        self._desk.roster.touch(name)
        run = self._desk.state.active
        held = None if run is None else run.leases.get(name)
        if run is not None and held is not None:
            self._desk.record(
                f.LeaseReturned(at=self._desk.now, run=run.id, device=name, lease=held.lease, why="flood")
            )

    def _tell_of_flood(self, name: str, flood: Flood, *, log: bool) -> None:
        """Tell the device, whoever may cut it off, who listens to what devices are told, and now and then the log."""
        detail = f"floods the coordinator ({flood}): nothing of it is read until it is quiet"
        if log:
            flood.logged_at = self._desk.now
            self._desk.note("error", f"{name} {detail}", device=name, reason="flood")
        if name in self._desk.state.devices:
            self._desk.state.devices[name].flood = detail
        notice = Notice(code="flood", detail=f"this device {detail}"[:1024])
        self._desk.send(self._desk.topics.down(name, "notice"), notice)

    def _hear(self, event: e.PacketArrived) -> None:
        try:
            desk = self._desk
            heard = hear(desk.topics, desk.state.devices, desk.reader, event.topic, event.payload)
            self._message(heard)
        except UnknownSenderError as error:
            self._desk.note("debug", str(error))
        except ReplayError as error:
            device, _ = self._count_refusal(event.topic, error)
            if device is not None and isinstance(error, OldEpochError):
                self._overtaken(device, error.epoch)
        except RemoteError as error:
            self._refuse(event.topic, error)

    def _count_refusal(self, topic: str, error: RemoteError) -> tuple[Device | None, int]:
        """Count what is wrong; return whose topic it came on, and how often so far."""
        device = None
        with suppress(RemoteError):
            device = self._desk.state.devices.get(self._desk.topics.parse_device(topic).device)
        self.rejections[error.reason] = self.rejections.get(error.reason, 0) + 1
        return device, device.refuse(error.reason) if device is not None else self.rejections[error.reason]

    def _refuse(self, topic: str, error: RemoteError) -> None:
        """Count what is wrong, say it once for each sender and reason, and go on."""
        device, count = self._count_refusal(topic, error)
        if count == 1:
            name = "" if device is None else device.id
            self._desk.note(
                "warning", f"refused a message on {topic}: {error}", reason=error.reason, device=name
            )
            if device is not None and device.online:
                notice = Notice(code=error.reason, detail=str(error)[:1024])
                self._desk.send(self._desk.topics.down(device.id, "notice"), notice)

    def _message(self, heard: Heard) -> None:
        body = heard.envelope.body
        if isinstance(body, Presence):
            self._presence(heard.device, body, heard.envelope.sequence)
            return
        device = self._desk.state.devices[heard.device]
        if device.online:
            device.behind = None  # that was an old packet
        match body:
            case Hello():
                self._hello(device)
            case Update():
                self._update(device, body.header, body.data)
            case Offer():
                self._offer(device, body)
            case UploadChunk():
                self._chunk(device, body)
            case Report():
                self._report(device, body)
            case Get():
                self._get(device, body)
            case _:
                msg = f"a device cannot say {type(body).__name__}"
                raise AssertionError(msg)

    def _presence(self, device_id: str, body: Presence, sequence: int) -> None:
        if device_id not in self._desk.state.devices:
            self._desk.record(
                f.DeviceEnrolled(at=self._desk.now, device=device_id, public_key=body.public_key)
            )
            self._desk.note("info", f"{device_id} joined the federation", device=device_id)
        device = self._desk.state.devices[device_id]
        device.replays.advance(body.session)
        if device.is_echo(body, sequence):
            if device.is_overtaken(body, sequence):
                self._overtaken(device, body.session)
            return
        if body.traffic is not None:
            self._count_traffic(device, body, body.traffic)
        if not body.online:
            if device.online or body.session > device.session:
                device.left(body, now=self._desk.now)
                self._desk.roster.touch(device_id)
                self._desk.note("info", f"{device_id} left by {device.gone_by}", device=device_id)
            return
        came_back = body.session > device.session
        device.arrived(body, sequence=sequence, now=self._desk.now)
        self._desk.roster.touch(device_id)
        run = self._desk.state.active
        if run is None:
            return
        held = run.leases.get(device_id)
        if came_back and held is not None and held.lease != run.cohort_lease:
            self._desk.record(
                f.LeaseReturned(
                    at=self._desk.now, run=run.id, device=device_id, lease=held.lease, why="it came back"
                )
            )
        check_fit(self._desk, device, run)

    def _overtaken(self, device: Device, session: int) -> None:
        """Tell a device that speaks in a session of the past which number it must come with; not often."""
        least = device.overtaken(session, now=self._desk.now)
        if least is None:
            return
        detail = f"this device speaks in session {session}, and is believed from session {least} on"
        notice = Notice(code="old-session", detail=detail, session=least)
        self._desk.send(self._desk.topics.down(device.id, "notice"), notice)
        self._desk.note("info", f"{device.id} {device.trouble}", device=device.id)

    def _count_traffic(self, device: Device, body: Presence, traffic: tuple[int, int]) -> None:
        """Count, and journal a goodbye's counters: the agent's own, as updates carry them; once, not at every copy."""
        before = device.sent, device.received
        traffic = device.newest_traffic(body.session, traffic)
        device.count_traffic(traffic)
        if not body.online and (device.sent, device.received) != before and device.online:
            sent, received = traffic
            self._gate.charge(device.id, _LASTING)
            self._desk.record(
                f.TrafficSeen(at=self._desk.now, device=device.id, sent=sent, received=received)
            )

    def _hello(self, device: Device) -> None:
        """Tell a device what a retained message should have told it: whom it can believe, and what is announced."""
        now = self._desk.now
        if self._desk.public_key and now >= self._status_due_at:
            self._status_due_at = now + _STATUS_EVERY_S
            epoch = self._desk.state.epoch
            key = self._desk.public_key
            status = Status(online=True, session=epoch, public_key=key, detail=self._desk.who)
            self._desk.send(self._desk.topics.coordinator_status, status, retain=True)
        run = self._desk.state.current
        if run is not None and run.holds_model:
            announcement = self._desk.announcement(run, inline=False)
            self._desk.send(self._desk.topics.down(device.id, "announcement"), announcement)
            if not run.over:  # what came before it had an announcement, or a key, it has not heeded
                self._grant_again(run, device.id)

    def _update(self, device: Device, header: UpdateHeader, data: bytes) -> None:
        self._desk.turns.heard(device.id, now=self._desk.now)
        run = self._desk.state.runs.get(header.run)
        if header.traffic is not None:
            traffic = device.newest_traffic(device.replays.epoch, header.traffic)
            device.count_traffic(traffic)
            if traffic != header.traffic:
                header = header.model_copy(update={"traffic": traffic})
        if run is None:
            self._receipt(device, header, Outcome("rejected", "discard", "unknown-run", "no such run here"))
            return
        outcome = run.outcome_of(device.id, header)
        if outcome is None and (run.state != "active" or run.rounds_done):
            unknown = "; what became of its updates is not known any more" if run.closed else ""
            detail = f"the run is over: {run.end_reason or run.state}{unknown}"
            outcome = Outcome("rejected", "discard", "run-over", detail)
        if outcome is None:
            verdict = judge(run, self._strategy(run), device.id, header, data, now=self._desk.now)
            self._settle(device, verdict, header)
        else:
            self._receipt(device, header, outcome)

    def _settle(
        self, device: Device, verdict: f.UpdateAccepted | f.UpdateRejected, header: UpdateHeader
    ) -> None:
        """Journal the verdict on an update, and tell its sender."""
        if isinstance(verdict, f.UpdateAccepted):
            verdict = verdict.model_copy(update={"session": device.replays.epoch})
        self._desk.record(verdict)
        match verdict:
            case f.UpdateAccepted():
                outcome = Outcome("accepted", "keep")
                self._failures.pop(device.id, None)
                self._gate.give_back(device.id, self._heard_bytes)
            case f.UpdateRejected():
                outcome = Outcome("rejected", verdict.residual, verdict.reason, verdict.detail)
                device.refuse(verdict.reason)
                self._gate.charge(device.id, _LASTING)
                if verdict.reason not in _HONEST_REASONS:
                    self._pause(device.id)
                text = f"refused an update of {device.id}: {verdict.detail}"
                self._desk.note("warning", text, device=device.id, run=verdict.run, reason=verdict.reason)
        self._receipt(device, header, outcome)

    def _receipt(self, device: Device, header: UpdateHeader, outcome: Outcome) -> None:
        receipt = Receipt(
            run=header.run,
            counter=header.counter,
            outcome=outcome.outcome,
            reason=outcome.reason,
            detail=outcome.detail[:1024],
            residual=outcome.residual,
            digest=header.payload.sha256[:RECEIPT_DIGEST_BYTES] if device.reads_digests else None,
        )
        self._desk.send(self._desk.topics.down(device.id, "receipt"), receipt)

    def _offer(self, device: Device, offer: Offer) -> None:
        header = offer.header
        run = self._desk.state.runs.get(header.run)
        if run is None or run.state != "active" or run.outcome_of(device.id, header) is not None:
            self._update(device, header, b"")
            return
        if run.was_granted(device.id, header.lease) is None:
            self._update(device, header, b"")  # its judge says why not
            return
        try:
            budget = max(_UPLOAD_BUDGET_BYTES, int(_UPLOAD_BUDGET * run.schema.size))
            credit = self._uploads.offer(
                device.id, offer, max_bytes=largest_update(run), budget_bytes=budget, now=self._desk.now
            )
        except RemoteError as error:
            self._refuse_upload(device, run, header, error)
        else:
            self._desk.send(self._desk.topics.down(device.id, "credit"), credit)

    def _chunk(self, device: Device, body: UploadChunk) -> None:
        upload = self._uploads.chunk(device.id, body, now=self._desk.now)
        if upload is None:
            return
        if not upload.assembly.complete:
            self._gate.give_back(device.id, self._heard_bytes)
            self._desk.send(self._desk.topics.down(device.id, "credit"), upload.credit())
            return
        self._uploads.close(device.id, upload.header)
        try:
            data = upload.assembly.result()
        except RemoteError as error:
            self._refuse_upload(device, self._desk.state.runs[body.run], upload.header, error)
        else:
            self._update(device, upload.header, data)

    def _refuse_upload(self, device: Device, run: Run, header: UpdateHeader, error: RemoteError) -> None:
        """The last word on an update whose bytes are wrong, or not wanted, before they are an update."""
        self._desk.turns.heard(device.id, now=self._desk.now)
        self._settle(device, refused(run, device.id, header, error, now=self._desk.now), header)

    def _report(self, device: Device, report: Report) -> None:
        run = self._desk.state.active
        self._gate.charge(device.id, _LASTING)
        self._desk.note(
            "warning",
            f"{device.id} reports {report.code}: {report.detail}",
            device=device.id,
            run=report.run or "",
        )
        if report.code == "task-mismatch" and run is not None and report.run == run.id:
            device.problem = report.detail
            self._desk.roster.touch(device.id)
        held = None if run is None or report.run != run.id else run.leases.get(device.id)
        if run is not None and held is not None and report.lease == held.lease:
            self._pause(device.id)
            self._desk.record(
                f.LeaseReturned(
                    at=self._desk.now, run=run.id, device=device.id, lease=held.lease, why=report.code
                )
            )

    def _pause(self, device: str) -> None:
        """Leave a device that failed in peace for a while, doubling each time."""
        failures = self._failures[device] = self._failures.get(device, 0) + 1
        until = self._desk.now + min(_PAUSE_MAX_S, _PAUSE_S * 2 ** (failures - 1))
        self._desk.roster.pause(device, until=until)

    def _get(self, device: Device, get: Get) -> None:
        run = self._desk.state.runs.get(get.run)
        if run is None or not run.holds_model:
            return
        chunk = self._desk.publisher.chunk(run, get.version, get.blob, get.index, to=device.id)
        if chunk is not None:
            self._desk.put(chunk)


def check_fit(desk: Desk, device: Device, run: Run) -> None:
    """Tell a device, and the operator, why it cannot take part: another task of this name, or codecs that it lacks."""
    other = device.mismatch(run.task)
    lacking = device.lacks(run.needed_codecs) if device.offers(run.task) else []
    if other is not None:
        what = "version" if other.version != run.task.version else "tensor schema"
        code, detail = (
            "task-mismatch",
            (
                f"this device has {other.name} {other.version} with another {what} than the run's "
                f"{run.task.name} {run.task.version}: install the run's task package and restart the agent"
            ),
        )
    elif lacking:
        code, detail = (
            "unknown-codec",
            (
                f"this device does not speak {', '.join(lacking)}, which the run needs: update its agent, or start "
                f"a run {_without(lacking)}"
            ),
        )
    else:
        return
    device.problem = detail
    desk.roster.touch(device.id)
    desk.send(desk.topics.down(device.id, "notice"), Notice(code=code, detail=detail))
    desk.note("warning", f"{device.id} is not selected: {detail}", device=device.id, run=run.id)


def _without(lacking: list[str]) -> str:
    """How a run would do without these codecs."""
    return "with compression.start = snapshot" if lacking == [versioned(SEEDED)] else "with other codecs"
