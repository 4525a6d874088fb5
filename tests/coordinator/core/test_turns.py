"""Updates of a large cohort come in turns: never more at once than there is room for, and every one of them comes."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core.turns import MAX_QUIET_S, QUIET_S
from fedmq_protocol.limits import RING
from fedmq_protocol.messages import Announcement, Receipt, Turn, Update
from fedmq_protocol.sampling import has_turn, place
from tests.coordinator.core.world import FLOAT32, World, settings

ROOM = 5


@dataclass
class Fleet:
    """Devices that do as the protocol says, and a queue between them and the coordinator, as a broker has one."""

    size: int
    room: int = ROOM
    mode: str = "sync"
    rounds: int = 2
    factor: float = 0.0
    """Of the straggler deadline; 0: there is none."""
    world: World = field(init=False)
    ready: dict[str, Update] = field(default_factory=dict)
    made: dict[str, Update] = field(default_factory=dict)
    queue: deque[tuple[str, Update]] = field(default_factory=deque)
    longest: int = 0

    def __post_init__(self) -> None:
        self.world = World(max_under_way=self.room)
        self.names = [f"d{number}" for number in range(self.size)]
        for name in self.names:
            self.world.join(name)
        selection = {
            "min_available_devices": self.size,
            "round_timeout_s": 1e6,
            "deadline_factor": self.factor,
        }
        strategy = {"buffer_size": ROOM} if self.mode == "fedbuff" else {}
        self.run = self.world.start_run(
            settings(
                mode=self.mode,
                rounds=self.rounds,
                selection=selection,
                strategy=strategy,
                compression=FLOAT32,
            )
        )

    @property
    def turn(self) -> Turn:
        said = self.world.sent(Turn)
        return said[-1] if said else Turn(start=0, span=RING)

    def train(self, names: list[str]) -> None:
        """So many are ready now."""
        for name in names:
            held = self.world.core.runs["r1"].leases[name]
            self.ready[name] = self.made[name] = self.world.update(name, 0.01, lease=held.lease)

    def send(self) -> None:
        """Whoever is ready and has its turn sends, each once."""
        for name in list(self.ready):
            if has_turn(self.turn, name):
                self.queue.append((name, self.ready.pop(name)))
        self.longest = max(self.longest, len(self.queue))

    def take(self) -> None:
        """The coordinator takes what has come first."""
        name, update = self.queue.popleft()
        self.world.say(self.world.devices[name], "update", update)


def test_a_small_fleet_never_hears_of_turns() -> None:
    fleet = Fleet(ROOM)
    for _ in range(2):
        fleet.train(fleet.names)
        fleet.send()
        while fleet.queue:
            fleet.take()
    assert fleet.run.state == "finished"
    assert fleet.world.sent(Turn) == []


def test_turns_are_given_before_the_announcement_that_makes_devices_train() -> None:
    fleet = Fleet(3 * ROOM)
    said = [
        type(effect.body)
        for effect in fleet.world.effects
        if isinstance(effect, do.Send) and isinstance(effect.body, Turn | Announcement)
    ]
    first_round = next(
        number for number, body in enumerate(fleet.world.sent(Announcement)) if body.cohort.devices
    )
    assert said.index(Turn) < [at for at, body in enumerate(said) if body is Announcement][first_round]
    assert sum(has_turn(fleet.turn, name) for name in fleet.names) == ROOM


def test_all_at_once_come_in_turns_without_any_time_passing() -> None:
    fleet = Fleet(60)
    for _ in range(2):
        fleet.train(fleet.names)
        fleet.send()
        while fleet.queue:
            assert len(fleet.queue) <= ROOM
            fleet.take()
            fleet.send()
        assert not fleet.ready
    assert fleet.run.state == "finished"
    assert fleet.run.num_accepted == 120
    assert fleet.longest == ROOM
    # A word for each half of the room, and one when everybody may.
    assert len(fleet.world.sent(Turn)) <= 2 * (60 / (ROOM / 2) + 2)
    assert fleet.turn.span == RING


def test_where_devices_train_on_at_once_everybody_has_a_turn() -> None:
    """A new lease for one who has just answered does not bring the arc back to it before the others had theirs."""
    fleet = Fleet(30, mode="fedbuff", rounds=40)
    trained: dict[str, int] = {}
    while fleet.run.state == "active":
        for name, held in fleet.run.leases.items():
            if trained.get(name) != held.lease:
                trained[name] = held.lease
                fleet.train([name])
        fleet.send()
        if fleet.queue:
            fleet.take()
        else:
            fleet.world.pass_time(0.2)
    assert fleet.longest <= ROOM
    counts = [fleet.run.updates_by_device[name] for name in fleet.names]
    assert max(counts) <= 2 * min(counts)


@pytest.mark.parametrize("seed", range(20))
def test_slow_ones_neither_block_the_others_nor_are_forgotten(seed: int) -> None:
    """In any order, with silences in between: the queue stays within its bound, and nobody waits for ever."""
    chance = random.Random(seed)
    fleet = Fleet(40, rounds=1)
    at_work = chance.sample(fleet.names, len(fleet.names))
    while at_work or fleet.ready or fleet.queue:
        match chance.choice(["train", "send", "take", "time"]):
            case "train" if at_work:
                fleet.train([at_work.pop() for _ in range(min(len(at_work), chance.randint(1, 12)))])
            case "take" if fleet.queue:
                fleet.take()
            case "time" if not fleet.queue:
                fleet.world.pass_time(chance.choice([0.1, 0.3, 1.1]))
            case _:
                fleet.send()
    assert fleet.run.state == "finished"
    assert fleet.run.num_accepted == 40
    assert fleet.longest <= ROOM


def test_a_silent_arc_gives_way_soon_and_then_seldom() -> None:
    fleet = Fleet(20 * ROOM)
    first = fleet.turn
    fleet.world.pass_time(QUIET_S)
    assert fleet.turn.start == (first.start + first.span) % RING
    words = len(fleet.world.sent(Turn))
    fleet.world.pass_time(100 * MAX_QUIET_S)
    assert 100 <= len(fleet.world.sent(Turn)) - words <= 110


def test_who_waits_for_its_turn_is_no_straggler_and_who_is_silent_is_one() -> None:
    fleet = Fleet(8 * ROOM, rounds=1, factor=1.0)
    silent = fleet.names[::20]
    fleet.train([name for name in fleet.names if name not in silent])
    fleet.send()
    while fleet.queue:  # the median takes half as long as all of them, and the deadline is the median
        fleet.world.pass_time(0.2)
        if fleet.queue:
            fleet.take()
        fleet.send()
    assert fleet.run.num_accepted == fleet.size - len(silent)
    assert not fleet.run.over
    fleet.world.pass_time(20.0)
    assert fleet.run.over


def test_who_is_ready_behind_silent_arcs_has_its_turn_before_the_deadline_strikes() -> None:
    fleet = Fleet(8 * ROOM, rounds=1, factor=1.0)
    begin = fleet.turn.start
    order = sorted(fleet.names, key=lambda name: (place(name) - begin) % RING)
    silent = order[22:34]
    fleet.train([name for name in order if name not in silent])
    for _ in range(500):
        fleet.send()
        fleet.world.pass_time(0.1)
        closes_in = fleet.world.core.run_view("r1", now=fleet.world.now).closes_in_s
        assert closes_in is None or closes_in > 0  # nobody is told that it should have closed
        if fleet.queue:
            fleet.take()
    assert not fleet.ready
    assert fleet.run.num_accepted == fleet.size - len(silent)
    assert fleet.run.over  # and the silent were not waited for without end


def test_who_leaves_makes_room() -> None:
    fleet = Fleet(2 * ROOM)
    on_the_arc = [name for name in fleet.names if has_turn(fleet.turn, name)]
    others = [name for name in fleet.names if name not in on_the_arc]
    for name in others:
        fleet.world.leave(name)
    assert fleet.turn.span == RING  # as many as are left may send


def test_a_coordinator_that_stood_still_looks_once_more_and_one_that_is_always_late_goes_on_all_the_same() -> (
    None
):
    fleet = Fleet(4 * ROOM)
    first = fleet.turn
    for late in (True, False):
        fleet.world.now += 10 * QUIET_S
        fleet.world.tell(e.TimePassed())
        assert (fleet.turn == first) == late


def test_after_a_reconnection_nobody_waits_on_an_arc_of_before() -> None:
    fleet = Fleet(2 * ROOM)
    assert fleet.turn.span < RING
    fleet.world.tell(e.BrokerDisconnected("cut"))
    fleet.world.tell(e.BrokerConnected())
    for name in fleet.names[:ROOM]:  # the others went meanwhile
        fleet.world.join(name, session=2)
    fleet.world.pass_time(10.0)
    assert fleet.turn.span == RING


def test_a_word_that_all_may_send_is_said_again_after_a_reconnection_that_may_have_lost_it() -> None:
    fleet = Fleet(2 * ROOM, rounds=1)
    fleet.train(fleet.names)
    fleet.send()
    while fleet.queue:
        fleet.take()
        fleet.send()
    assert fleet.turn.span == RING
    before = len(fleet.world.sent(Turn))
    fleet.world.tell(e.BrokerDisconnected("cut"))
    fleet.world.tell(e.BrokerConnected())
    assert [turn.span for turn in fleet.world.sent(Turn)[before:]] == [RING]


def test_the_operator_sees_who_waits_for_credit() -> None:
    fleet = Fleet(3 * ROOM)
    view = fleet.world.core.run_view("r1", now=fleet.world.now)
    assert "updates wait for credit: 5 of 15 devices may send now" in view.waiting
    fleet.train(fleet.names)
    fleet.send()
    while fleet.queue:
        fleet.take()
        fleet.send()
    fleet.train(fleet.names[:ROOM])
    assert "credit" in fleet.world.core.run_view("r1", now=fleet.world.now).waiting


def test_a_new_start_gives_turns_before_all_else_and_reckons_with_lost_receipts() -> None:
    fleet = Fleet(4 * ROOM, rounds=1)
    fleet.train(fleet.names)
    fleet.send()
    for _ in range(3 * ROOM):
        fleet.take()
        fleet.send()
    fleet.queue.clear()
    before = len(fleet.world.effects)
    fleet.world.restart()
    words = [
        effect.body
        for effect in fleet.world.effects[before:]
        if isinstance(effect, do.Send) and isinstance(effect.body, Turn | Announcement)
    ]
    assert isinstance(words[0], Turn)
    # Nobody has a receipt: all say everything again, those who count already among them.
    fleet.ready, fleet.longest = dict(fleet.made), 0
    for _ in range(100):
        fleet.send()
        while fleet.queue:
            fleet.take()
            fleet.send()
        fleet.world.pass_time(0.5)
    assert not fleet.ready
    assert fleet.longest == ROOM
    assert fleet.world.core.runs["r1"].num_accepted == 4 * ROOM
    assert {receipt.outcome for receipt in fleet.world.sent(Receipt)} == {"accepted"}
