"""A day's bytes: counted over restarts and jumps of the clock, and nothing begun that would pass the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_edge_agent.core.budget import DAY_S, KEEP_S, MAX_RESERVE, Budget
from fedmq_edge_agent.core.effects import (
    Ask,
    CommitState,
    Effect,
    Note,
    SendUpdate,
    SendUploadChunk,
    Subscribe,
    Train,
    Unsubscribe,
)
from fedmq_edge_agent.core.events import Connected, Disconnected, TimePassed
from fedmq_edge_agent.core.machine import AgentLimits
from fedmq_edge_agent.core.state import AgentState, Spent
from fedmq_edge_agent.core.words import size
from fedmq_protocol.messages import Credit, Hello, Offer, Presence, Report
from tests.edge_agent.core.driven import PAYLOAD, TOPICS, Device, bodies, of
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator

DAY = 20_780
NOON = DAY * DAY_S + DAY_S / 2
"""2026-11-23, 12:00 UTC."""


def fresh(limit: int | None = 1_000_000, **spent: int) -> Budget:
    budget = Budget(limit, Spent(**spent))
    budget.count(sent=0, received=0, clock_s=NOON, now=0.0)
    return budget


# ------------------------------------------------------------------------------------------------ the count


def test_both_ways_are_counted_and_a_twentieth_is_kept_for_keepalives() -> None:
    budget = fresh()
    budget.count(sent=300_000, received=200_000, clock_s=NOON + 60, now=60.0)
    assert budget.spent == Spent(day=DAY, today=500_000, sent=300_000, received=200_000)
    assert budget.left == 1_000_000 - 500_000 - MAX_RESERVE
    assert fresh(400_000).left == 380_000


@pytest.mark.parametrize("limit", [20_000, 100_000, 240_000, 5_000_000])
def test_what_is_kept_is_enough_for_a_days_keepalives(limit: int) -> None:
    """PINGREQ and PINGRESP have two bytes each (MQTT 5, sections 3.12 and 3.13), and go once in 30 s."""
    left = fresh(limit).left
    assert left is not None
    assert limit - left >= 4 * DAY_S / 30
    assert left > 0


def test_a_restart_goes_on_counting_and_the_next_day_begins_with_nothing() -> None:
    budget = fresh(day=DAY, today=900_000, sent=2_000_000, received=1)
    assert budget.spent.today == 900_000
    budget.count(sent=10, received=0, clock_s=NOON + DAY_S / 2, now=DAY_S / 2)
    assert budget.spent == Spent(day=DAY + 1, today=10, sent=2_000_010, received=1)


def test_without_a_clock_a_day_is_24_hours_of_running() -> None:
    budget = Budget(1_000_000, Spent())
    budget.count(sent=0, received=0, clock_s=5.0, now=100.0)
    budget.count(sent=990_000, received=0, clock_s=60.0, now=160.0)
    assert budget.resting
    assert budget.problem.endswith("back in 24.0 h")
    assert budget.next_deadline() == 100.0 + KEEP_S
    budget.count(sent=990_000, received=0, clock_s=86_400.0, now=100.0 + DAY_S - 1)
    assert budget.problem
    budget.count(sent=990_000, received=0, clock_s=86_401.0, now=100.0 + DAY_S)
    assert (budget.problem, budget.spent.today) == ("", 0)


def running(spent: Spent, *, hours: float, clock_s: float = 5.0) -> tuple[Budget, Spent]:
    """A start with nothing but a rest, ended by a kill; what was written down, whenever it was worth it."""
    budget = Budget(1_000_000, spent)
    now, kept, end = 50.0, spent, 50.0 + 3_600 * hours
    while True:
        budget.count(sent=0, received=0, clock_s=clock_s, now=now)
        if budget.worth_keeping:
            kept = budget.keep()
        due = budget.next_deadline()
        if due is None or due > end:
            return budget, kept
        assert due > now
        now = due


def test_without_a_clock_a_rest_ends_though_the_device_never_runs_for_a_day() -> None:
    """It is switched off each night: 8 hours at a time."""
    spent = Spent(today=990_000, sent=990_000)
    for day in range(4):
        budget, spent = running(spent, hours=8.2)
        assert budget.resting == (day < 2)
    assert spent.today == 0


def test_where_a_clock_tells_the_day_a_rest_writes_nothing() -> None:
    budget, kept = running(Spent(day=DAY, today=990_000), hours=11, clock_s=NOON)
    assert budget.resting
    assert kept == Spent(day=DAY, today=990_000)
    assert budget.keep().ran_s == 0
    assert budget.problem.endswith("back at 00:00 UTC")


def test_a_clock_that_is_set_at_last_does_not_wipe_the_count() -> None:
    budget = Budget(1_000_000, Spent())
    budget.count(sent=500_000, received=0, clock_s=5.0, now=1.0)
    budget.count(sent=500_000, received=0, clock_s=NOON, now=2.0)
    assert budget.spent == Spent(day=DAY, today=500_000, sent=500_000)


def test_a_clock_that_is_set_back_does_not_give_a_new_budget_each_time() -> None:
    budget = fresh()
    budget.count(sent=800_000, received=0, clock_s=NOON, now=10.0)
    budget.count(sent=800_000, received=0, clock_s=NOON - 5 * DAY_S, now=20.0)
    assert budget.spent.today == 800_000
    budget.count(sent=800_000, received=0, clock_s=NOON, now=30.0)
    assert budget.spent.today == 800_000


def test_it_is_written_down_for_each_hundredth_of_the_limit() -> None:
    budget = fresh(day=DAY)
    worth_it = [budget.worth_keeping]
    for received in (0, 1):
        budget.count(sent=9_999, received=received, clock_s=NOON, now=1.0)
        worth_it.append(budget.worth_keeping)
    assert budget.keep().today == 10_000
    assert [*worth_it, budget.worth_keeping] == [False, False, True, False]


def test_without_a_limit_it_counts_and_never_rests() -> None:
    budget = fresh(None)
    budget.count(sent=10**15, received=10**15, clock_s=NOON, now=1.0)
    assert budget.fits(10**18, "anything")
    assert budget.left is None
    assert budget.spent.sent == 10**15


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 400_000), st.integers(0, 400_000), st.floats(0, 3e9), st.floats(0, 2e5)),
        max_size=40,
    )
)
def test_whatever_the_clock_says_nothing_is_lost_from_the_count(
    steps: list[tuple[int, int, float, float]],
) -> None:
    """A day's count either grows by what was moved, or begins anew with it; days never go back; a rest ends."""
    budget = Budget(1_000_000, Spent())
    sent = received = 0
    now = 0.0
    budget.count(sent=0, received=0, clock_s=0.0, now=0.0)
    for up, down, clock_s, wait in steps:
        before = budget.spent
        sent, received, now = sent + up, received + down, now + wait
        budget.count(sent=sent, received=received, clock_s=clock_s, now=now)
        assert (budget.spent.sent, budget.spent.received) == (sent, received)
        assert budget.spent.today in {up + down, before.today + up + down}
        assert budget.spent.day >= before.day
        ends_at = budget.next_deadline()
        assert budget.resting == (ends_at is not None)
        assert ends_at is None or now < ends_at <= now + DAY_S


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (5_000_000, "5 MB"), (48_234, "48.2 kB"), (2e12, "2e+03 GB")],
)
def test_sizes_read_as_people_write_them(count: float, text: str) -> None:
    assert size(count) == text


# ---------------------------------------------------------------------------------------------- the device


@pytest.fixture
def coordinator() -> ScriptedCoordinator:
    return ScriptedCoordinator()


class Thrifty(Device):
    """A device with a budget, a socket that counts, and a clock."""

    def __init__(
        self, coordinator: ScriptedCoordinator, *, limit: int, state: AgentState | None = None
    ) -> None:
        limits = AgentLimits(federation="home", device="dev-1", daily_bytes=limit)
        super().__init__(coordinator, limits=limits, state=state or AgentState())
        self.used = 0

    def tell(self, event: object) -> list[Effect]:
        self.agent.count(sent=self.used, received=0, clock_s=NOON + self.now - 100.0, now=self.now)
        return super().tell(event)

    def presences(self, effects: list[Effect]) -> list[str]:
        return [presence.problem for presence in bodies(effects, Presence)]


def test_a_device_whose_budget_is_used_up_gives_its_lease_back_and_says_so(
    coordinator: ScriptedCoordinator,
) -> None:
    device = Thrifty(coordinator, limit=100_000)
    device.join()
    device.used = 87_000
    effects = device.hear(coordinator.announcement(cohort=EVERYBODY, lease=3))
    [report] = bodies(effects, Report)
    assert (report.code, report.lease) == ("busy", 3)
    assert "87 kB of the daily budget of 100 kB are used, and the next round takes about" in report.detail
    assert "back at 00:00 UTC" in report.detail
    assert device.presences(effects) == [report.detail]
    assert Unsubscribe((TOPICS.announcement,)) in effects
    assert device.agent.waiting(now=device.now).startswith("87 kB of the daily budget")
    assert not [ask for ask in of(effects, Ask) if isinstance(ask.request, Train)]


def test_it_comes_back_by_itself_the_next_day(coordinator: ScriptedCoordinator) -> None:
    device = Thrifty(coordinator, limit=100_000)
    device.join()
    device.used = 99_000
    effects = device.tell(TimePassed())
    assert Unsubscribe((TOPICS.announcement,)) in effects
    quiet_night = device.wait(DAY_S / 2 - 1)
    assert not bodies(quiet_night, Hello)
    assert not of(quiet_night, Subscribe)
    morning = device.wait(2)
    assert Subscribe((TOPICS.announcement,)) in morning
    assert device.presences(morning) == [""]
    effects = device.hear(coordinator.announcement(cohort=EVERYBODY, lease=4))
    assert [ask.request.lease for ask in of(effects, Ask)] == [4]


def test_an_update_that_does_not_fit_waits_in_the_outbox_and_goes_the_next_day(
    coordinator: ScriptedCoordinator,
) -> None:
    device = Thrifty(coordinator, limit=100_000)
    device.join()
    device.hear(coordinator.announcement(cohort=EVERYBODY, lease=3))
    device.used = 87_000
    effects = device.trained()
    assert of(effects, CommitState)
    assert not of(effects, SendUpdate)
    assert "the next update takes about" in device.presences(effects)[-1]
    assert not of(device.wait(3_600), SendUpdate)
    morning = device.wait(DAY_S / 2)
    assert [send.header.lease for send in of(morning, SendUpdate)][:1] == [3]


def test_a_credit_is_of_no_use_while_resting(coordinator: ScriptedCoordinator) -> None:
    device = Thrifty(coordinator, limit=1_000_000)
    device.join()
    device.hear(coordinator.announcement(cohort=EVERYBODY, lease=3))
    [offer] = bodies(device.trained(payload=PAYLOAD * 2_000), Offer)
    device.used = 999_000
    device.tell(TimePassed())
    count = -(-offer.header.payload.size // offer.chunk_bytes)
    credit = Credit(run=offer.header.run, counter=offer.header.counter, have=bytes(-(-count // 8)), window=8)
    down = TOPICS.down("dev-1", "credit")
    assert not of(device.hear(coordinator.seal(down, credit)), SendUploadChunk)


def test_a_snapshot_that_does_not_fit_is_not_begun(coordinator: ScriptedCoordinator) -> None:
    coordinator.begin("r1", snapshot_bytes=90_000)
    device = Thrifty(coordinator, limit=80_000)
    device.start()
    device.connect()
    device.hear(coordinator.status())
    effects = device.hear(coordinator.announcement())
    assert not device.asked()
    assert "the model (snapshot 0) takes about 90 kB" in device.presences(effects)[-1]


def test_after_a_lost_connection_it_listens_only_if_it_may(coordinator: ScriptedCoordinator) -> None:
    device = Thrifty(coordinator, limit=100_000)
    device.join()
    device.used = 99_000
    device.tell(TimePassed())
    device.tell(Disconnected("the cable"))
    assert not of(device.connect(), Subscribe)
    device.tell(Disconnected("the cable"))
    device.wait(DAY_S / 2)
    assert Subscribe((TOPICS.announcement,)) in device.tell(Connected(device.agent.next_session(), 131_072))


def test_the_count_survives_an_orderly_end_and_a_restart(coordinator: ScriptedCoordinator) -> None:
    device = Thrifty(coordinator, limit=100_000)
    device.join()
    device.used = 95_500
    device.tell(TimePassed())
    [commit] = of(device.agent.last_effects(), CommitState)
    assert commit.state.spent == Spent(day=DAY, today=95_500, sent=95_500)
    again = Thrifty(coordinator, limit=100_000, state=commit.state)
    effects = again.start()
    assert Unsubscribe((TOPICS.announcement,)) in effects
    assert [note.text for note in of(effects, Note) if "daily budget" in note.text]
