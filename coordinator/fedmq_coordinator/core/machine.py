"""The coordinator as one pure machine: events in, effects out, time an argument.

State changes by facts alone (`state`). `handle` decides on facts, applies each at once and hands it out as a `Record`;
after a restart `state.replay` applies the journal's, through the same code. What a restart may forget stands beside it
and comes anew: who is online (from retained presence), uploads that are half here, evaluations under way.

`conversation` hears the devices, `progress` moves the active run on, `desk` is what both work on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, assert_never

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core import showing, views
from fedmq_coordinator.core.blobs import EMPTY, Blob, MemoryShelf, Shelf
from fedmq_coordinator.core.checkpoint import Checkpoint, dump
from fedmq_coordinator.core.conversation import Conversation
from fedmq_coordinator.core.desk import Desk
from fedmq_coordinator.core.floods import Flood
from fedmq_coordinator.core.packing import pack_vector
from fedmq_coordinator.core.progress import LARGE_MODEL, Progress
from fedmq_coordinator.core.publishing import Publisher
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.state import FederationState
from fedmq_coordinator.core.turns import Turns
from fedmq_protocol.envelope import Reader
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_PACKET_BYTES
from fedmq_protocol.messages import Status
from fedmq_protocol.topics import Topics

_PRESUMED_S: Final = 5.0
_RETURN_S: Final = 5.0
"""Whoever was put out by a client of the same name connects again well within this."""


class Coordinator:
    """Everything that the coordinator decides.

    Args:
        federation: its name, which stands in every topic.
        shelf: where what is too large to be held is put; default: it is held.
        aside_from: versions of models from this size on, in elements, are made aside, by a `Prepare`.
        reader: opens and verifies packets; default: as the protocol says.
        state: where to go on; default: nothing has happened yet.
        turns: admits updates; default: as many at once as any broker queues.

    Raises:
        UsageError: the name cannot stand in a topic.
    """

    def __init__(
        self,
        *,
        federation: str,
        shelf: Shelf | None = None,
        aside_from: int = LARGE_MODEL,
        reader: Reader | None = None,
        state: FederationState | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.topics = Topics(federation)
        self.state = FederationState() if state is None else state
        self._desk = Desk(
            self.topics,
            self.state,
            Publisher(self.topics),
            shelf=shelf or MemoryShelf(),
            reader=reader or Reader(),
            turns=turns or Turns(),
        )
        self._progress = Progress(self._desk, aside_from=aside_from)
        self._conversation = Conversation(self._desk, self._progress.strategy, self._progress.grant_again)
        self._broker = "the broker: not connected yet"
        self._connections = 0
        self._outrun: tuple[int, float] | None = None
        """A newer epoch whose owner seems to be away, and until when it is given time to come back."""

    def handle(self, event: e.Event, *, now: float) -> list[do.Effect]:
        """Decide on an event.

        Args:
            event: what happened.
            now: seconds since the epoch, never less than before.

        Returns:
            What is to be done, in this order.
        """
        self._desk.now = now
        match event:
            case e.CoordinatorStarted():
                self._started(event)
            case e.BrokerConnected():
                self._connected(event)
            case e.BrokerDisconnected():
                self._broker = f"the broker: {event.reason}"
                self._desk.connected = False
                self._outrun = None
            case e.PacketArrived() if self._conversation.ignores(event, now=now):
                return []
            case e.PacketArrived(topic=topic) if topic == self.topics.coordinator_status:
                self._other_status(event.payload)
            case e.PacketArrived():
                self._conversation.hear(event)
            case e.RunRequested():
                self._request(event)
            case e.StopRequested():
                self._stop(event)
            case e.EvaluationFinished():
                self._evaluated(event)
            case e.EvaluationFailed():
                self._progress.evaluation_done(event.run, event.version)
                text = f"evaluation of version {event.version} failed: {event.detail}"
                self._desk.note("warning", text, run=event.run, version=event.version)
            case e.VersionPrepared():
                self._progress.prepared(event)
            case e.TimePassed():
                self._begin_again()
                self._conversation.end_floods()
            case _ as unreachable:
                assert_never(unreachable)
        self._progress.settle()
        self._conversation.forget_uploads(but_of=None if self.state.active is None else self.state.active.id)
        return self._desk.take()

    def next_deadline(self) -> float | None:
        """When `TimePassed` should come at the latest, in seconds since the epoch."""
        times = [
            self._progress.next_deadline(),
            None if self._outrun is None else self._outrun[1],
            self._conversation.next_flood_end(),
        ]
        return min((at for at in times if at is not None), default=None)

    def ignores(self, event: e.PacketArrived, *, now: float) -> bool:
        """Whether a packet is of a device that floods: it is counted, and need not be handled."""
        return self._conversation.ignores(event, now=now)

    def checkpoint(self) -> Checkpoint | None:
        """The state as it stands; to be taken when all that was recorded is in the journal.

        Returns:
            None while a version is being made, or while it would be too large.
        """
        return None if self._desk.making is not None else dump(self.state)

    @property
    def runs(self) -> dict[str, Run]:
        """Every run by its id."""
        return self.state.runs

    @property
    def floods(self) -> Mapping[str, Flood]:
        """Devices that flood, of which nothing is read."""
        return self._conversation.floods

    @property
    def active(self) -> Run | None:
        """The run that trains now."""
        return self.state.active

    def view(self, *, now: float) -> views.FederationView:
        """The whole federation as plain data."""
        return showing.federation(
            self._desk, broker=self._broker, rejections=self._conversation.rejections, now=now
        )

    def run_view(self, run: str, *, now: float) -> views.RunView:
        """One run as plain data.

        Raises:
            KeyError: there is no such run.
        """
        evaluating = self._progress.is_evaluating(run)
        return showing.run(self.runs[run], self._desk, broker=self._broker, evaluating=evaluating, now=now)

    def _started(self, event: e.CoordinatorStarted) -> None:
        """Go on where the journal ends. Whoever was waited for is given the whole time again."""
        self._desk.public_key, self._desk.who = event.public_key, event.who
        self._desk.resumed_at = self._desk.now
        self._desk.roster.anew()
        self._desk.record(f.EpochBegun(at=self._desk.now, epoch=event.epoch, outrun=event.outrun))
        run = self.active
        if run is not None and event.outrun:
            self._progress.take_back_all(run, "the journal is an older copy")
        if run is not None and run.holds_model and run.version not in run.evaluations:
            self._progress.evaluate(run)

    def _connected(self, event: e.BrokerConnected) -> None:
        """Publish again what may be gone, and learn anew who is online from what is retained."""
        self._broker = ""
        self._connections += 1
        self._desk.connected = True
        self._desk.resumed_at = self._desk.now
        self._desk.presumed_until = self._desk.now + _PRESUMED_S
        self._desk.publisher.max_packet_bytes = min(
            MAX_PACKET_BYTES, event.max_packet_bytes or MAX_PACKET_BYTES
        )
        for device in self.state.devices.values():
            device.online = device.heard = False
        self._desk.roster.anew()
        self._desk.turns.connected(self.state.active)
        self._progress.take_turns()
        run = self.state.current
        if run is not None and run.holds_model:
            self._progress.clear_later(self._desk.publisher.superseded(run))
            if run.over:
                self._progress.clear_later(sorted(self._desk.publisher.retained(run)))
            else:
                for version in self._desk.publisher.versions(run):
                    self._progress.publish_chunks(run, version)
            self._progress.announce(run, inline=not run.over)
            self._progress.grant_again(run)

    def _other_status(self, payload: bytes) -> None:
        """Another coordinator of this federation, with our key: devices believe the newer epoch alone, the other ends.

        It may have gone meanwhile, or seem so: two with one client id put each other out, and their last wills speak.
        Of two with the same epoch, on copies of one journal, whoever hears of the other first begins a newer one. So
        does a coordinator that was started on an older copy, if nobody comes back to put it out.
        """
        try:
            opened = self._desk.reader.open(self.topics.coordinator_status, payload)
            envelope = self._desk.reader.verified(opened, self._desk.public_key)
        except RemoteError:
            return
        body, mine, theirs = envelope.body, self.state.epoch, envelope.epoch
        if not isinstance(body, Status) or theirs < mine:
            return
        named = f" ({body.detail})" if body.detail else ""
        if theirs == mine and self._desk.who not in body.detail:
            reason = f"another coordinator of this federation{named} has had this one's epoch {mine}"
            self._desk.put(do.Halt(reason, above=theirs))
        elif theirs > mine and not body.online and self._connections <= 1:
            self._outrun = theirs, self._desk.now + _RETURN_S
        elif theirs > mine:
            away = "" if body.online else ", and devices believe no older one"
            reason = (
                f"another coordinator of this federation has taken over, with epoch {theirs}{named}{away}"
            )
            self._desk.put(do.Halt(reason))

    def _begin_again(self) -> None:
        """Nobody has come back who has a better right."""
        if self._outrun is not None and self._desk.now >= self._outrun[1]:
            theirs, self._outrun = self._outrun[0], None
            reason = f"this journal, of epoch {self.state.epoch}, is an older copy: devices have heard epoch {theirs}"
            self._desk.put(do.Halt(reason, above=theirs))

    def _request(self, event: e.RunRequested) -> None:
        if event.run in self.runs:
            self._desk.note("warning", f"there is a run {event.run} already", run=event.run)
            return
        initial = EMPTY if event.initial is None else event.initial
        if not isinstance(initial, Blob):
            initial = pack_vector(initial, self._desk.shelf)
        if event.why_no_recipe:
            text = f"the first weights of {event.run} travel: {event.why_no_recipe}"
            self._desk.note("info", text, run=event.run)
        self._desk.record(
            f.RunCreated(
                at=self._desk.now,
                run=event.run,
                settings=event.settings,
                task=event.task,
                tensor_schema=event.schema,
                initial=initial,
                has_central_data=event.has_central_data,
                recipe=event.recipe,
                why_no_recipe=event.why_no_recipe,
            )
        )

    def _stop(self, event: e.StopRequested) -> None:
        run = self.runs.get(event.run)
        if run is not None and not run.over:
            self._progress.end(run, "stopped", event.reason)

    def _evaluated(self, event: e.EvaluationFinished) -> None:
        self._progress.evaluation_done(event.run, event.version)
        run = self.runs.get(event.run)
        if run is None or run.over:
            return
        self._desk.record(
            f.Evaluated(
                at=self._desk.now,
                run=event.run,
                version=event.version,
                loss=event.loss,
                num_examples=event.num_examples,
                metrics=event.metrics,
            )
        )
        self._progress.check_target(run, event.version, event.metrics)
