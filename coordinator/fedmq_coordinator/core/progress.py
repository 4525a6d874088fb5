"""Moving a run on: activating it, opening and closing its rounds, publishing, evaluating, ending it."""

from __future__ import annotations

from collections import deque
from typing import Final, assert_never

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core import leases, rounds, showing
from fedmq_coordinator.core.blobs import Vector
from fedmq_coordinator.core.conversation import check_fit
from fedmq_coordinator.core.desk import Desk
from fedmq_coordinator.core.intake import largest_update
from fedmq_coordinator.core.reminder import Reminder
from fedmq_coordinator.core.run import HeldLease, Run
from fedmq_coordinator.core.selection import aim, choose_by_rule
from fedmq_coordinator.core.strategies import Strategy, make_strategy
from fedmq_coordinator.core.timing import lease_length
from fedmq_protocol.limits import MAX_COHORT_LIST
from fedmq_protocol.messages import Lease

_EVALUATION_PATIENCE_S: Final = 60.0
_CLEAR_GRACE_S: Final = 30.0
LARGE_MODEL: Final = 1_000_000
"""Elements; making a version of a smaller model takes some hundredths of a second."""


class Progress:
    """Takes every decision that is due on the active run, and knows when the next one will be.

    Args:
        desk: what it works on.
        aside_from: versions of models from this size on, in elements, are made aside.
    """

    def __init__(self, desk: Desk, *, aside_from: int) -> None:
        self._desk = desk
        self._aside_from = aside_from
        self._evaluating: dict[tuple[str, int], float] = {}
        self._clear_at: deque[tuple[float, str]] = deque()
        """In the order of time."""
        self._wake_at: float | None = None
        self._reminder = Reminder()
        self._strategy: tuple[Run, int, Strategy] | None = None

    def next_deadline(self) -> float | None:
        """When `settle` should be called again at the latest, in seconds since the epoch."""
        if not self._desk.connected:
            return None
        times = [
            self._clear_at[0][0] if self._clear_at else None,
            self._wake_at,
            self._reminder.due_at,
            self._desk.turns.next_deadline,
        ]
        run = self._desk.state.active
        if run is not None:
            crew = self._desk.crew(run)
            times += [self._desk.presumed_until] if self._desk.now < self._desk.presumed_until else []
            times += [crew.next_expiry(), crew.next_pause_end(), *self._evaluating.values()]
        return min((at for at in times if at is not None), default=None)

    def is_evaluating(self, run: str) -> bool:
        """Whether an evaluation of the run is under way."""
        return any(name == run for name, _ in self._evaluating)

    def evaluation_done(self, run: str, version: int) -> None:
        """An evaluation came back, or failed."""
        self._evaluating.pop((run, version), None)

    def settle(self) -> None:
        """Take every decision that is due, until the active run waits for something, or no run is left."""
        self._wake_at = None
        if self._desk.connected:
            self._clear_due()
        self._evaluating = {key: until for key, until in self._evaluating.items() if until > self._desk.now}
        if self._desk.state.epoch == 0 or not self._desk.connected:
            return
        while self._advance():
            pass
        self._remind()
        self.take_turns()

    def _update_bytes(self, run: Run) -> int:
        return min(self._desk.publisher.max_packet_bytes, largest_update(run))

    def take_turns(self) -> None:
        """Say whose turn it is to send, where that has changed; before anything that makes devices send."""
        desk, run = self._desk, self._desk.state.active
        crew = None if run is None else desk.crew(run)
        turn = desk.turns.settle(run, crew, update_bytes=self._update_bytes, now=desk.now)
        if turn is not None:
            desk.send(desk.topics.turn, turn, retain=True)

    def _remind(self) -> None:
        """Announce again where nobody is at work, or nothing has come for as long as a round may take."""
        run, silent = self._desk.state.active, None
        if run is not None and self._desk.making is None and not run.rounds_done:
            heard_at = max(run.arrivals[-1] if run.arrivals else run.published_at, self._desk.resumed_at)
            too_long = self._desk.now - heard_at > run.settings.selection.round_timeout_s
            silent = run.id if too_long or not self._desk.crew(run).num_at_work else None
        if self._reminder.is_due(silent, now=self._desk.now) and run is not None:
            self.announce(run, inline=False)

    def _advance(self) -> bool:
        """Take one decision; False when there is none to take."""
        state = self._desk.state
        run = state.active
        if run is not None:
            self._expire(run)
        if self._desk.making is not None:
            return False
        if run is None:
            if state.queue:
                self._activate(state.runs[state.queue[0]])
            return state.active is not None
        if run.version < 0 or run.awaits_publication:
            self._publish(run)
            return True
        if self._reached_on_devices(run):
            return True
        if run.rounds_done:
            return self._finish(run)
        return self._settle_sync(run) if run.settings.mode == "sync" else self._settle_async(run)

    def _activate(self, run: Run) -> None:
        self._desk.record(f.RunActivated(at=self._desk.now, run=run.id))
        self._desk.note("info", f"run {run.id} begins: {run.task.name} {run.task.version}", run=run.id)
        for device in self._desk.state.devices.values():
            if device.online and device.presence is not None:
                device.problem = device.presence.problem
                check_fit(self._desk, device, run)

    def strategy(self, run: Run) -> Strategy:
        """The run's, for as many devices as may be at work now."""
        in_flight = aim(run, max(1, len(self._desk.crew(run).available)))
        known = self._strategy
        if known is None or known[0] is not run or known[1] != in_flight:
            strategy = make_strategy(run.expected_settings, in_flight=in_flight)
            known = self._strategy = run, in_flight, strategy
        return known[2]

    def _expire(self, run: Run) -> None:
        for device, lease in self._desk.crew(run).expired(self._desk.now):
            self._desk.record(
                f.LeaseReturned(at=self._desk.now, run=run.id, device=device, lease=lease, why="expired")
            )

    def take_back_all(self, run: Run, why: str) -> None:
        """End every lease without an update."""
        for device, held in list(run.leases.items()):
            self._desk.record(
                f.LeaseReturned(at=self._desk.now, run=run.id, device=device, lease=held.lease, why=why)
            )

    def _expires_at(self, held: HeldLease) -> float:
        return self._desk.extended(held.granted_at, held.expires_at)

    def _settle_sync(self, run: Run) -> bool:
        """Take one decision of a synchronous run; False when there is none to take."""
        crew = self._desk.crew(run)
        decision = rounds.decide(
            run,
            crew,
            now=self._desk.now,
            resumed_at=self._desk.resumed_at,
            flows_until=self._desk.turns.flows_until,
        )
        match decision:
            case rounds.Wait():
                self._wake_at = decision.until
                return False
            case rounds.OpenRound():
                again = run.round_open
                self._open_round(run, run.round if again else run.round + 1, decision.devices, decision.goal)
                self.announce(run, inline=False)
            case rounds.CloseRound():
                self._step(run, decision.why)
                self._publish(run)
            case _ as unreachable:
                assert_never(unreachable)
        return True

    def _settle_async(self, run: Run) -> bool:
        """Take one decision of an asynchronous run; False when there is none to take."""
        decision = leases.decide(run, self.strategy(run), self._desk.crew(run), now=self._desk.now)
        match decision:
            case leases.Wait():
                self._wake_at = decision.until
                return False
            case leases.TakeStep():
                self._step(run, decision.why)
            case leases.Publish():
                self._publish(run)
            case leases.Grant():
                self._grant(run, decision.devices)
            case _ as unreachable:
                assert_never(unreachable)
        return True

    def _step(self, run: Run, why: f.ClosedBy) -> None:
        missed = why in {"deadline", "timeout"}  # some device did not come in time
        text = f"round {run.round} closes by {why}: {run.accumulator.num_updates} of {run.goal} updates"
        self._desk.note("info" if missed else "debug", text, run=run.id, closed_by=why)
        scale = self.strategy(run).scale(run.accumulator.buffer)
        self._desk.record(
            f.StepTaken(
                at=self._desk.now,
                run=run.id,
                round=run.round,
                scale=scale,
                num_updates=run.accumulator.num_updates,
                closed_by=why,
            )
        )

    def _publish(self, run: Run) -> None:
        """Make the next version: at once, or aside if that takes long."""
        model, shelf, now = run.model, self._desk.shelf, self._desk.now
        may_be_evaluated = run.has_central_data and run.settings.evaluate_every > 0

        def make() -> e.VersionPrepared:
            fact = model.next_version(shelf, run=run.id, at=now)
            return e.VersionPrepared(fact, shelf.lend(model.replica) if may_be_evaluated else None)

        if run.schema.size >= self._aside_from:
            self._desk.making = run.id, now
            self._desk.put(do.Prepare(run.id, make))
        else:
            self._published(run, make())

    def prepared(self, event: e.VersionPrepared) -> None:
        """A version that was made aside is there; of a run that has ended meanwhile, it never was."""
        self._desk.making = None
        run = self._desk.state.runs[event.fact.run]
        if not run.over:
            self._published(run, event)

    def _published(self, run: Run, made: e.VersionPrepared) -> None:
        """Publish a version, and with its announcement open the round of those who are free."""
        devices, goal = self._next_cohort(run)
        fact = made.fact.model_copy(update={"at": self._desk.now})
        self._desk.record(fact)
        if fact.snapshot is not None:
            self.clear_later(self._desk.publisher.superseded(run))
        self.publish_chunks(run, fact.version)
        if devices:
            sync = run.settings.mode == "sync"
            self._open_round(run, run.round + 1 if sync else fact.version + 1, devices, goal)
        self.announce(run, inline=True, patient=fact.delta is None)
        self.evaluate(run, made.lent)

    def _next_cohort(self, run: Run) -> tuple[list[str], int]:
        """Who gets a lease with the version that is about to be published, and for how many updates that waits."""
        if run.version < 0:
            return [], 0
        crew = self._desk.crew(run)
        if run.settings.mode == "sync":
            following = rounds.next_round(run, crew)
            return following.devices, following.goal
        if run.version + 1 >= run.settings.rounds:
            return [], 0
        devices = leases.with_version(run, crew)
        return devices, len(devices)

    def evaluate(self, run: Run, lent: Vector | None = None) -> None:
        """Have the newest version evaluated, if the settings ask for it; `lent` is a copy of its replica."""
        every = run.settings.evaluate_every
        if run.has_central_data and every and (run.version % every == 0 or run.rounds_done):
            self._evaluating[run.id, run.version] = self._desk.now + _EVALUATION_PATIENCE_S
            vector = self._desk.shelf.lend(run.model.replica) if lent is None else lent
            self._desk.put(do.Evaluate(run.id, run.version, vector))

    def _open_round(self, run: Run, number: int, devices: list[str], goal: int) -> None:
        """Give these devices leases by the next announcement; a long list becomes a sampling rule of the same rate."""
        lease, rate, seed = run.lease + 1, None, None
        if len(devices) > MAX_COHORT_LIST:
            free = self._desk.crew(run).free
            rate, seed, devices = choose_by_rule(run, free, len(devices), round_number=number, lease=lease)
        self._desk.record(
            f.RoundOpened(
                at=self._desk.now,
                run=run.id,
                round=number,
                version=run.version,
                lease=lease,
                devices=devices,
                goal=min(goal, len(devices)),
                lease_expires_at=self._desk.now + lease_length(run, devices),
                rate=rate,
                sampling_seed=seed,
            )
        )
        self.take_turns()

    def _grant(self, run: Run, devices: list[str]) -> None:
        """Give leases one by one."""
        for device in devices:
            length = lease_length(run, [device])
            fact = f.LeaseGranted(
                at=self._desk.now,
                run=run.id,
                device=device,
                lease=run.lease + 1,
                version=run.version,
                lease_expires_at=self._desk.now + length,
            )
            self._desk.record(fact)
            self._say_lease(run, device, run.leases[device])

    def grant_again(self, run: Run, to: str | None = None) -> None:
        """Say once more those leases that no announcement says: to one device, or to all."""
        for device in list(run.leases) if to is None else [to]:
            held = run.leases.get(device)
            if held is not None and held.lease != run.cohort_lease:
                self._say_lease(run, device, held)

    def _say_lease(self, run: Run, device: str, held: HeldLease) -> None:
        left_s = max(0.0, self._expires_at(held) - self._desk.now)
        lease = Lease(run=run.id, lease=held.lease, version=held.version, lease_s=left_s)
        self._desk.send(self._desk.topics.down(device, "lease"), lease)

    def _finish(self, run: Run) -> bool:
        """End a run whose rounds are over, once the last version has been evaluated."""
        if self.is_evaluating(run.id):
            return False
        self.end(run, "finished", f"all {run.settings.rounds} rounds are done")
        return True

    def _reached_on_devices(self, run: Run) -> bool:
        """Whether the version before the newest has reached the target on the devices' own data, and ended the run.

        The newest one is still being evaluated. Where there is central data, that alone decides.
        """
        score = run.federated.get(run.version - 1)
        if run.settings.target is None or run.has_central_data or score is None:
            return False
        self.check_target(run, run.version - 1, score.metrics)
        return run.over

    def check_target(self, run: Run, version: int, metrics: dict[str, float]) -> None:
        """End a run whose target metric has been reached."""
        target, metric = run.settings.target, run.settings.target_metric
        reached = metrics.get(metric)
        if target is not None and reached is not None and reached >= target:
            self.end(run, "finished", f"{metric} {reached:.4f} of version {version} reached {target}")

    def end(self, run: Run, state: f.EndState, reason: str) -> None:
        self._desk.record(
            f.RunEnded(
                at=self._desk.now,
                run=run.id,
                state=state,
                reason=reason,
                best_version=showing.best_version(run),
            )
        )
        self._desk.note("info", f"run {run.id} {state}: {reason}", run=run.id)
        self._evaluating = {key: at for key, at in self._evaluating.items() if key[0] != run.id}
        if run.version >= 0:
            self.announce(run, inline=False)
            self.clear_later(sorted(self._desk.publisher.retained(run)))

    def announce(self, run: Run, *, inline: bool, patient: bool = False) -> None:
        announcement = self._desk.announcement(run, inline=inline)
        self._desk.send(self._desk.topics.announcement, announcement, retain=True, patient=patient)
        self._reminder.said(now=self._desk.now)

    def publish_chunks(self, run: Run, version: int) -> None:
        for chunk in self._desk.publisher.chunks(run, version):
            self._desk.put(chunk)

    def clear_later(self, topics: list[str]) -> None:
        """Have retained chunks removed once those who fetch them have had time to."""
        self._clear_at.extend((self._desk.now + _CLEAR_GRACE_S, topic) for topic in topics)

    def _clear_due(self) -> None:
        while self._clear_at and self._clear_at[0][0] <= self._desk.now:
            self._desk.put(do.Clear(self._clear_at.popleft()[1]))
