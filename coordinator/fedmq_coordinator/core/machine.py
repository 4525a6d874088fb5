"""The coordinator as one pure machine: events in, effects out, time an argument.

State changes by facts alone. `handle` decides on facts, applies each at once and hands it out as a `Record`; after a
restart `replay` applies the journal's, through the same code. What a restart may forget stands beside it and comes
anew: who is online (from retained presence), uploads that are half here, evaluations under way.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, assert_never

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core import leases, rounds, showing, views
from fedmq_coordinator.core.dedupe import Outcome
from fedmq_coordinator.core.devices import Device
from fedmq_coordinator.core.inbox import UnknownSenderError, hear
from fedmq_coordinator.core.intake import judge
from fedmq_coordinator.core.publication import pack_vector
from fedmq_coordinator.core.publishing import Publisher
from fedmq_coordinator.core.run import HeldLease, Run
from fedmq_coordinator.core.selection import aim, available, choose_by_rule
from fedmq_coordinator.core.state import FederationState
from fedmq_coordinator.core.strategies import Strategy, make_strategy
from fedmq_coordinator.core.timing import lease_length
from fedmq_coordinator.core.uploads import Uploads
from fedmq_protocol.codecs import max_encoded_bytes
from fedmq_protocol.envelope import open_envelope
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import (
    MAX_COHORT_LIST,
    MAX_PACKET_BYTES,
)
from fedmq_protocol.messages import (
    Body,
    Get,
    Hello,
    Lease,
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
from fedmq_protocol.topics import Topics

_EVALUATION_PATIENCE_S: Final = 60.0
_CLEAR_GRACE_S: Final = 30.0
_PAUSE_S: Final = 10.0
_PAUSE_MAX_S: Final = 600.0
_UPLOAD_BUDGET_BYTES: Final = 256 * 1024 * 1024
_UPDATE_FRAME_BYTES: Final = 64
_HONEST_REASONS: Final = frozenset({"too-old", "no-lease"})
"""Why an update of a device in good order may be refused; any other reason pauses the device."""


class Coordinator:
    """Everything that the coordinator decides.

    Args:
        federation: its name, which stands in every topic.
    """

    def __init__(self, *, federation: str) -> None:
        self.topics = Topics(federation)
        self.state = FederationState()
        self.devices = self.state.devices
        self.runs = self.state.runs
        self.rejections: dict[str, int] = {}
        self._publisher = Publisher(self.topics)
        self._effects: list[do.Effect] = []
        self._now = 0.0
        self._resumed_at = 0.0
        self._broker: str = "the broker: not connected yet"
        self._paused: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._evaluating: dict[tuple[str, int], float] = {}
        self._clear_at: list[tuple[float, str]] = []
        self._uploads = Uploads(_UPLOAD_BUDGET_BYTES)
        self._wake_at: float | None = None

    # Events in, effects out

    def handle(self, event: e.Event, *, now: float) -> list[do.Effect]:
        """Decide on an event.

        Args:
            event: what happened.
            now: seconds since the epoch, never less than before.
        """
        self._now = now
        match event:
            case e.CoordinatorStarted():
                self._started(event)
            case e.BrokerConnected():
                self._connected(event)
            case e.BrokerDisconnected():
                self._broker = f"the broker: {event.reason}"
            case e.PacketArrived():
                self._packet(event)
            case e.RunRequested():
                self._request(event)
            case e.StopRequested():
                self._stop(event)
            case e.EvaluationFinished():
                self._evaluated(event)
            case e.EvaluationFailed():
                self._evaluating.pop((event.run, event.version), None)
                self._note(
                    "warning", f"evaluation failed: {event.detail}", run=event.run, version=event.version
                )
            case e.TimePassed():
                pass
            case _ as unreachable:
                assert_never(unreachable)
        self._settle()
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When `TimePassed` should come at the latest, in seconds since the epoch."""
        times = [at for at, _ in self._clear_at]
        run = self.active
        if run is not None:
            times += [self._expires_at(lease) for lease in run.leases.values()]
            times += [at for at in self._paused.values() if at > self._now]
            times += list(self._evaluating.values())
        if self._wake_at is not None:
            times.append(self._wake_at)
        return min(times) if times else None

    @property
    def active(self) -> Run | None:
        """The run that trains now."""
        return self.state.active

    def vector(self, run: str) -> NDArray[np.float32]:
        """The newest published replica of a run, float32[size]; not to be written to."""
        return self.runs[run].model.replica

    def _record(self, fact: f.Fact) -> None:
        self.state.apply(fact)
        self._effects.append(do.Record(fact))

    def _send(self, topic: str, body: Body, *, retain: bool = False) -> None:
        self._effects.append(do.Send(topic, body, retain))

    def _note(self, level: do.Level, text: str, **fields: str | float) -> None:
        self._effects.append(do.Note(level, text, fields))

    def _started(self, event: e.CoordinatorStarted) -> None:
        """Go on where the journal ends. Whoever was waited for is given the whole time again."""
        self._resumed_at = self._now
        self._record(f.EpochBegun(at=self._now, epoch=event.epoch))
        run = self.active
        if run is not None and run.version >= 0 and run.version not in run.evaluations:
            self._evaluate(run)

    # The broker

    def _connected(self, event: e.BrokerConnected) -> None:
        self._broker = ""
        self._publisher.max_packet_bytes = min(MAX_PACKET_BYTES, event.max_packet_bytes or MAX_PACKET_BYTES)
        for device in self.devices.values():
            device.online = False
        run = self.state.current
        if run is not None and run.holds_model:
            for version in self._publisher.versions(run):
                self._publish_chunks(run, version)
            self._announce(run, inline=True)

    def _packet(self, event: e.PacketArrived) -> None:
        if event.topic == self.topics.coordinator_status:
            self._other_status(event.payload)
            return
        if not event.payload:
            return
        try:
            heard = hear(self.topics, self.devices, event.topic, event.payload)
            self._message(heard.device, heard.envelope.body)
        except UnknownSenderError as error:
            self._note("debug", str(error))
        except RemoteError as error:
            self._refuse(event.topic, error)

    def _refuse(self, topic: str, error: RemoteError) -> None:
        """Count what is wrong, say it once for each sender and reason, and go on."""
        device = None
        with suppress(RemoteError):
            device = self.devices.get(self.topics.parse_device(topic).device)
        self.rejections[error.reason] = self.rejections.get(error.reason, 0) + 1
        count = device.refuse(error.reason) if device is not None else self.rejections[error.reason]
        if count == 1:
            self._note("warning", f"refused a message on {topic}: {error}", reason=error.reason)
            if device is not None and device.online:
                notice = Notice(code=error.reason, detail=str(error)[:1024])
                self._send(self.topics.down(device.id, "notice"), notice)

    def _other_status(self, payload: bytes) -> None:
        """Another coordinator on our federation: the newer epoch goes on."""
        try:
            envelope = open_envelope(self.topics.coordinator_status, payload)
        except RemoteError:
            return
        if isinstance(envelope.body, Status) and envelope.body.online and envelope.epoch > self.state.epoch:
            self._effects.append(
                do.Halt(f"another coordinator of this federation has taken over, with epoch {envelope.epoch}")
            )

    # What devices say

    def _message(self, device_id: str, body: Body) -> None:
        match body:
            case Presence():
                self._presence(device_id, body)
                return
            case _:
                device = self.devices[device_id]
        match body:
            case Hello():
                self._hello(device)
            case Update():
                self._update(device, body.header, body.data)
            case Offer():
                self._offer(device, body)
            case UploadChunk():
                upload = self._uploads.chunk(device.id, body)
                if upload is not None:
                    self._uploads.close(device.id, body.counter)
                    self._update(device, upload.header, upload.assembly.result())
            case Report():
                self._report(device, body)
            case Get():
                self._get(device, body)
            case _:
                msg = f"a device cannot say {type(body).__name__}"
                raise AssertionError(msg)

    def _presence(self, device_id: str, body: Presence) -> None:
        if device_id not in self.devices:
            self._record(f.DeviceEnrolled(at=self._now, device=device_id, public_key=body.public_key))
            self._note("info", f"{device_id} joined the federation", device=device_id)
        device = self.devices[device_id]
        if body.session < device.session:
            return
        if body.traffic is not None:
            device.count_traffic(body.traffic)
            if not body.online:
                self._record(
                    f.TrafficSeen(at=self._now, device=device_id, sent=device.sent, received=device.received)
                )
        if not body.online:
            if device.online or body.session > device.session:
                device.left(body, now=self._now)
                device.session = body.session
                self._note("info", f"{device_id} left by {device.gone_by}", device=device_id)
            return
        came_back = body.session > device.session
        device.arrived(body, session=body.session, now=self._now)
        run = self.active
        if run is None:
            return
        held = run.leases.get(device_id)
        if came_back and held is not None and held.lease != run.cohort_lease:
            self._record(
                f.LeaseReturned(
                    at=self._now, run=run.id, device=device_id, lease=held.lease, why="it came back"
                )
            )
        self._check_task(device, run)

    def _check_task(self, device: Device, run: Run) -> None:
        other = device.mismatch(run.task)
        if other is None:
            return
        what = "version" if other.version != run.task.version else "tensor schema"
        detail = (
            f"this device has {other.name} {other.version} with another {what} than the run's "
            f"{run.task.name} {run.task.version}: install the run's task package and restart the agent"
        )
        device.problem = detail
        self._send(self.topics.down(device.id, "notice"), Notice(code="task-mismatch", detail=detail))
        self._note("warning", f"{device.id} is not selected: {detail}", device=device.id, run=run.id)

    def _hello(self, device: Device) -> None:
        run = self.state.current
        if run is not None and run.holds_model:
            announcement = self._publisher.announcement(run, now=self._now, inline=False)
            self._send(self.topics.down(device.id, "announcement"), announcement)

    def _update(self, device: Device, header: UpdateHeader, data: bytes) -> None:
        run = self.runs.get(header.run)
        if header.traffic is not None:
            device.count_traffic(header.traffic)
        if run is None:
            self._receipt(device, header, Outcome("rejected", "discard", "unknown-run", "no such run here"))
            return
        settled = run.settled.get(device.id)
        outcome = settled.find(header.counter) if settled is not None else None
        if outcome is None and (run.state != "active" or run.rounds_done):
            outcome = Outcome(
                "rejected", "discard", "run-over", f"the run is over: {run.end_reason or run.state}"
            )
        if outcome is None:
            fact = judge(run, self._strategy(run), device.id, header, data, now=self._now)
            self._record(fact)
            match fact:
                case f.UpdateAccepted():
                    outcome = Outcome("accepted", "keep")
                    self._failures.pop(device.id, None)
                case f.UpdateRejected():
                    outcome = Outcome("rejected", fact.residual, fact.reason, fact.detail)
                    device.refuse(fact.reason)
                    if fact.reason not in _HONEST_REASONS:
                        self._pause(device.id)
                    self._note(
                        "warning",
                        f"refused an update of {device.id}: {fact.detail}",
                        device=device.id,
                        run=run.id,
                        reason=fact.reason,
                    )
        self._receipt(device, header, outcome)

    def _receipt(self, device: Device, header: UpdateHeader, outcome: Outcome) -> None:
        receipt = Receipt(
            run=header.run,
            counter=header.counter,
            outcome=outcome.outcome,
            reason=outcome.reason,
            detail=outcome.detail[:1024],
            residual=outcome.residual,
        )
        self._send(self.topics.down(device.id, "receipt"), receipt)

    def _offer(self, device: Device, offer: Offer) -> None:
        header = offer.header
        run = self.runs.get(header.run)
        settled = None if run is None else run.settled.get(device.id)
        if (
            run is None
            or run.state != "active"
            or (settled is not None and settled.find(header.counter) is not None)
        ):
            self._update(device, header, b"")
            return
        bound = max_encoded_bytes(run.schema.num_parameters) + max_encoded_bytes(run.schema.num_buffers)
        credit = self._uploads.offer(device.id, offer, max_bytes=bound + _UPDATE_FRAME_BYTES)
        self._send(self.topics.down(device.id, "credit"), credit)

    def _report(self, device: Device, report: Report) -> None:
        run = self.active
        self._note(
            "warning",
            f"{device.id} reports {report.code}: {report.detail}",
            device=device.id,
            run=report.run or "",
        )
        if report.code in {"task-mismatch", "no-data", "task-error"}:
            device.problem = report.detail
        held = None if run is None or report.run != run.id else run.leases.get(device.id)
        if run is not None and held is not None and report.lease == held.lease:
            self._pause(device.id)
            self._record(
                f.LeaseReturned(at=self._now, run=run.id, device=device.id, lease=held.lease, why=report.code)
            )

    def _pause(self, device: str) -> None:
        """Leave a device that failed in peace for a while, doubling each time."""
        failures = self._failures[device] = self._failures.get(device, 0) + 1
        self._paused[device] = self._now + min(_PAUSE_MAX_S, _PAUSE_S * 2 ** (failures - 1))

    def _get(self, device: Device, get: Get) -> None:
        run = self.runs.get(get.run)
        if run is None or not run.holds_model:
            return
        chunk = self._publisher.chunk(run, get.version, get.blob, get.index)
        if chunk is not None:
            self._send(self.topics.down(device.id, "chunk"), chunk)

    # What the operator wants

    def _request(self, event: e.RunRequested) -> None:
        if event.run in self.runs:
            self._note("warning", f"there is a run {event.run} already", run=event.run)
            return
        self._record(
            f.RunCreated(
                at=self._now,
                run=event.run,
                settings=event.settings,
                task=event.task,
                tensor_schema=event.schema,
                initial=pack_vector(event.initial),
                has_central_data=event.has_central_data,
            )
        )

    def _stop(self, event: e.StopRequested) -> None:
        run = self.runs.get(event.run)
        if run is not None and not run.over:
            self._end(run, "stopped", event.reason)

    def _evaluated(self, event: e.EvaluationFinished) -> None:
        self._evaluating.pop((event.run, event.version), None)
        run = self.runs.get(event.run)
        if run is None or run.over:
            return
        self._record(
            f.Evaluated(
                at=self._now,
                run=event.run,
                version=event.version,
                loss=event.loss,
                num_examples=event.num_examples,
                metrics=event.metrics,
            )
        )
        target, metric = run.settings.target, run.settings.target_metric
        if target is not None and event.metrics.get(metric, -np.inf) >= target:
            self._end(
                run,
                "finished",
                f"{metric} {event.metrics[metric]:.4f} of version {event.version} reached {target}",
            )

    # Making progress

    def _settle(self) -> None:
        """Take every decision that is due; leave in `_wake_at` when the next one is."""
        self._wake_at = None
        self._clear_due()
        self._evaluating = {key: until for key, until in self._evaluating.items() if until > self._now}
        if self.active is None and self.state.queue:
            self._activate(self.runs[self.state.queue[0]])
        run = self.active
        if run is None or self.state.epoch == 0:
            return
        self._expire(run)
        while self.active is run and not run.rounds_done:
            if not (self._settle_sync(run) if run.settings.mode == "sync" else self._settle_async(run)):
                return
        if self.active is run and run.rounds_done:
            self._finish(run)

    def _activate(self, run: Run) -> None:
        self._record(f.RunActivated(at=self._now, run=run.id))
        self._note("info", f"run {run.id} begins: {run.task.name} {run.task.version}", run=run.id)
        self._publish(run, devices=[])
        for device in self.devices.values():
            if device.online and device.presence is not None:
                device.problem = device.presence.problem
                self._check_task(device, run)

    def _strategy(self, run: Run) -> Strategy:
        return make_strategy(run.settings, in_flight=aim(run, max(1, len(self._available(run)))))

    def _available(self, run: Run) -> list[str]:
        return available(self.devices.values(), run, now=self._now, paused=self._paused)

    def _online(self) -> set[str]:
        return {device.id for device in self.devices.values() if device.online}

    def _expire(self, run: Run) -> None:
        for device, held in list(run.leases.items()):
            if self._now >= self._expires_at(held):
                self._record(
                    f.LeaseReturned(at=self._now, run=run.id, device=device, lease=held.lease, why="expired")
                )

    def _expires_at(self, held: HeldLease) -> float:
        """When a lease ends; time in which no coordinator ran does not count."""
        return max(held.expires_at, self._resumed_at + held.expires_at - held.granted_at)

    def _settle_sync(self, run: Run) -> bool:
        """Take one decision of a synchronous run; False when there is none to take."""
        decision = rounds.decide(
            run, self._available(run), self._online(), now=self._now, resumed_at=self._resumed_at
        )
        match decision:
            case rounds.Wait():
                self._wake_at = decision.until
                return False
            case rounds.OpenRound():
                again = run.round_open
                self._open_round(run, run.round if again else run.round + 1, decision.devices, decision.goal)
                self._announce(run, inline=False)
            case rounds.CloseRound():
                self._step(run, decision.why)
                last = run.round >= run.settings.rounds
                following = None
                if not last:
                    probe = rounds.decide(
                        run, self._available(run), self._online(), now=self._now, resumed_at=self._resumed_at
                    )
                    following = probe if isinstance(probe, rounds.OpenRound) else None
                self._publish(
                    run,
                    devices=following.devices if following else [],
                    goal=following.goal if following else 0,
                )
            case _ as unreachable:
                assert_never(unreachable)
        return True

    def _settle_async(self, run: Run) -> bool:
        """Take one decision of an asynchronous run; False when there is none to take."""
        decision = leases.decide(
            run, self._strategy(run), self._available(run), self._online(), now=self._now
        )
        match decision:
            case leases.Wait():
                self._wake_at = decision.until
                return False
            case leases.TakeStep():
                self._step(run, decision.why)
            case leases.Publish():
                last = run.version + 1 >= run.settings.rounds
                self._publish(run, devices=[] if last else decision.devices, goal=len(decision.devices))
            case leases.Grant():
                self._grant(run, decision.devices)
            case _ as unreachable:
                assert_never(unreachable)
        return True

    def _step(self, run: Run, why: f.ClosedBy) -> None:
        scale = self._strategy(run).scale(run.accumulator.buffer)
        self._record(
            f.StepTaken(
                at=self._now,
                run=run.id,
                round=run.round,
                scale=scale,
                num_updates=run.accumulator.num_updates,
                closed_by=why,
            )
        )

    def _publish(self, run: Run, *, devices: list[str], goal: int = 0) -> None:
        """Publish the next version, and with its announcement open the round of `devices`."""
        old = self._publisher.retained(run)
        fact = run.model.next_version(run=run.id, at=self._now)
        self._record(fact)
        if fact.snapshot is not None:
            current = self._publisher.retained(run)
            self._clear_at += [(self._now + _CLEAR_GRACE_S, topic) for topic in sorted(old - current)]
        self._publish_chunks(run, fact.version)
        if devices:
            sync = run.settings.mode == "sync"
            self._open_round(run, run.round + 1 if sync else fact.version + 1, devices, goal)
        self._announce(run, inline=True)
        self._evaluate(run)

    def _evaluate(self, run: Run) -> None:
        """Have the newest version evaluated, if the settings ask for it."""
        every = run.settings.evaluate_every
        if run.has_central_data and every and (run.version % every == 0 or run.rounds_done):
            self._evaluating[run.id, run.version] = self._now + _EVALUATION_PATIENCE_S
            self._effects.append(do.Evaluate(run.id, run.version, run.model.replica.copy()))

    def _open_round(self, run: Run, number: int, devices: list[str], goal: int) -> None:
        """Give these devices leases by the next announcement; a long list becomes a sampling rule of the same rate."""
        lease, rate, seed = run.lease + 1, None, None
        if len(devices) > MAX_COHORT_LIST:
            free = [device for device in self._available(run) if device not in run.leases]
            rate, seed, devices = choose_by_rule(run, free, len(devices), round_number=number, lease=lease)
        self._record(
            f.RoundOpened(
                at=self._now,
                run=run.id,
                round=number,
                version=run.version,
                lease=lease,
                devices=devices,
                goal=min(goal, len(devices)),
                lease_expires_at=self._now + lease_length(run, devices),
                rate=rate,
                sampling_seed=seed,
            )
        )

    def _grant(self, run: Run, devices: list[str]) -> None:
        """Give leases one by one."""
        for device in devices:
            length = lease_length(run, [device])
            fact = f.LeaseGranted(
                at=self._now,
                run=run.id,
                device=device,
                lease=run.lease + 1,
                version=run.version,
                lease_expires_at=self._now + length,
            )
            self._record(fact)
            lease = Lease(run=run.id, lease=fact.lease, version=fact.version, lease_s=length)
            self._send(self.topics.down(device, "lease"), lease)

    def _finish(self, run: Run) -> None:
        """End a run whose rounds are over, once the last version has been evaluated."""
        if not any(name == run.id for name, _ in self._evaluating):
            self._end(run, "finished", f"all {run.settings.rounds} rounds are done")

    def _end(self, run: Run, state: f.EndState, reason: str) -> None:
        self._record(
            f.RunEnded(at=self._now, run=run.id, state=state, reason=reason, best_version=self._best(run))
        )
        self._note("info", f"run {run.id} {state}: {reason}", run=run.id)
        self._evaluating = {key: at for key, at in self._evaluating.items() if key[0] != run.id}
        self._uploads.clear()
        if run.version >= 0:
            self._announce(run, inline=True)
            self._clear_at += [
                (self._now + _CLEAR_GRACE_S, topic) for topic in sorted(self._publisher.retained(run))
            ]

    def _best(self, run: Run) -> int | None:
        """The version with the best target metric, or else the least loss."""
        scored = showing.scores(run)
        return max(scored, key=lambda version: (scored[version], version), default=None)

    # What is published

    def _announce(self, run: Run, *, inline: bool) -> None:
        announcement = self._publisher.announcement(run, now=self._now, inline=inline)
        self._send(self.topics.announcement, announcement, retain=True)

    def _publish_chunks(self, run: Run, version: int) -> None:
        for topic, chunk in self._publisher.chunks(run, version):
            self._send(topic, chunk, retain=True)

    def _clear_due(self) -> None:
        due = [topic for at, topic in self._clear_at if at <= self._now]
        self._clear_at = [(at, topic) for at, topic in self._clear_at if at > self._now]
        self._effects += [do.Clear(topic) for topic in due]

    # Views

    def view(self, *, now: float) -> views.FederationView:
        """The whole federation as plain data."""
        return showing.federation(self, broker=self._broker, paused=self._paused, now=now)

    def run_view(self, run: str, *, now: float) -> views.RunView:
        """One run as plain data.

        Raises:
            KeyError: there is no such run.
        """
        return showing.run(
            self.runs[run],
            self.devices,
            available(self.devices.values(), self.runs[run], now=now, paused=self._paused),
            broker=self._broker,
            evaluating=any(name == run for name, _ in self._evaluating),
            now=now,
            resumed_at=self._resumed_at,
        )
