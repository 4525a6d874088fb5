"""What all parts of the machine work on: the state, the moment, and the effects of the event in hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.blobs import MemoryShelf, Shelf
from fedmq_coordinator.core.publishing import Publisher
from fedmq_coordinator.core.roster import Roster
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.state import FederationState
from fedmq_coordinator.core.turns import Turns
from fedmq_protocol.envelope import Reader
from fedmq_protocol.messages import Announcement, Body
from fedmq_protocol.topics import Topics


@dataclass
class Desk:
    """State, and what a restart may forget.

    Attributes:
        topics: the federation's.
        state: the fold of the journal.
        publisher: makes announcements and chunks.
        shelf: where what is too large to be held is put.
        reader: opens and verifies packets.
        public_key: this coordinator's, by which devices know it.
        who: what its status says of this process.
        now: seconds since the epoch, of the event in hand.
        resumed_at: when this coordinator started; whoever is waited for has the whole time from then on.
        connected: whether the broker can be spoken to; without it no decision is taken and no time runs out.
        presumed_until: so long a device that has not been heard of since connecting is taken to be there, if it has a
            lease: its retained presence is on its way.
        making: the run of which a version is being made aside, and since when; nothing else is decided meanwhile.
        turns: whose turn it is to send updates.
        roster: who is there; `crew` brings it up to date.
    """

    topics: Topics
    state: FederationState
    publisher: Publisher
    shelf: Shelf = field(default_factory=MemoryShelf)
    reader: Reader = field(default_factory=Reader)
    public_key: bytes = b""
    who: str = ""
    now: float = 0.0
    resumed_at: float = 0.0
    connected: bool = False
    presumed_until: float = 0.0
    making: tuple[str, float] | None = None
    turns: Turns = field(default_factory=Turns)
    roster: Roster = field(init=False)
    _effects: list[do.Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roster = Roster(self.state.devices)

    def record(self, fact: f.Fact) -> None:
        """Make a fact so, and have it journaled."""
        self.state.apply(fact)
        self.roster.recorded(fact)
        if isinstance(fact, f.LeaseReturned):
            self.turns.heard(fact.device, now=self.now)
        self._effects.append(do.Record(fact))

    def send(self, topic: str, body: Body, *, retain: bool = False, patient: bool = False) -> None:
        self._effects.append(do.Send(topic, body, retain, patient, self._is_read_packed(topic)))

    def _is_read_packed(self, topic: str) -> bool:
        """Whether all who hear a topic now read packed envelopes; one who comes and does not says hello."""
        if topic == self.topics.announcement:
            return self.roster.all_read_packed
        addressed = self.topics.addressed(topic)
        device = None if addressed is None else self.state.devices.get(addressed)
        return device is not None and device.reads_packed

    def note(self, level: do.Level, text: str, **fields: str | float) -> None:
        """A line for the log; of no run that is named, it is about the active one, and always about its round."""
        run = self.state.runs.get(str(fields["run"])) if fields.get("run") else self.state.active
        known: dict[str, str | float] = {}
        if run is not None:
            known["run"] = run.id
            if run.round:
                known["round"] = run.round
        self._effects.append(do.Note(level, text, known | {k: v for k, v in fields.items() if v != ""}))

    def put(self, effect: do.Effect) -> None:
        self._effects.append(effect)

    def take(self) -> list[do.Effect]:
        """The effects so far, in their order; the desk is clear again."""
        effects, self._effects = self._effects, []
        return effects

    def crew(self, run: Run) -> Roster:
        """The devices in the light of the active run, as they are now."""
        presuming = self.now < self.presumed_until
        return self.roster.bring_up_to_date(run, now=self.now, presuming=presuming, extended=self.extended)

    def extended(self, granted_at: float, expires_at: float) -> float:
        """When a lease ends; time in which no coordinator ran, or no broker was there, does not count."""
        return max(expires_at, self.resumed_at + expires_at - granted_at)

    def announcement(self, run: Run, *, inline: bool) -> Announcement:
        """The state of a run as it stands now."""
        expires_at = self.extended(run.cohort_granted_at, run.lease_expires_at)
        return self.publisher.announcement(run, lease_s=max(0.0, expires_at - self.now), inline=inline)
