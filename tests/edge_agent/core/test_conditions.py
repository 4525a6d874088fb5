"""When a device may train: each rule by itself, without wavering; and what the machine does where one does not hold."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_edge_agent.core.conditions import DAY_MIN, SETTLE_S, Conditions, Hours, Readings, Rules
from fedmq_edge_agent.core.effects import (
    Ask,
    Note,
    SendUpdate,
    StartTrainer,
    StopTrainer,
    Subscribe,
    Train,
    Unsubscribe,
)
from fedmq_edge_agent.core.events import ConditionsRead, Connected, Disconnected, ModelLoaded, TrainerStarted
from fedmq_edge_agent.core.machine import AgentLimits
from fedmq_protocol.messages import Presence, Report
from tests.edge_agent.core.driven import OPENED, TOPICS, Device, bodies, of
from tests.edge_agent.scripted import EVERYBODY, ScriptedCoordinator

GOOD = Readings(power=True, battery=90.0, temperature=("cpu-thermal", 45.0), minute=23 * 60, metered=False)


def judged(rules: Rules, *readings: Readings, every_s: float = 0.0) -> Conditions:
    conditions = Conditions(rules)
    for number, each in enumerate(readings):
        conditions.read(each, now=number * every_s)
    return conditions


# ------------------------------------------------------------------------------------------------ the rules


def test_without_rules_nothing_is_asked_for() -> None:
    conditions = Conditions(Rules(rest_untold=True))
    assert not conditions.rules.any
    assert not conditions.resting


def test_with_rules_it_rests_until_they_have_been_read() -> None:
    conditions = Conditions(Rules(power=True))
    assert conditions.resting
    conditions.read(GOOD, now=0.0)
    assert not conditions.resting


@pytest.mark.parametrize(
    ("rules", "bad", "says"),
    [
        (Rules(power=True), Readings(power=False), "it runs on its battery"),
        (Rules(min_battery=40), Readings(power=False, battery=39.0), "its battery is at 39 %"),
        (Rules(max_temperature=70), Readings(temperature=("cpu-thermal", 70.1)), "cpu-thermal is at 70 °C"),
        (Rules(hours=(Hours(22 * 60, 6 * 60),)), Readings(minute=21 * 60), "next from 22:00 on"),
        (Rules(hours=(Hours(22 * 60, 6 * 60),)), Readings(), "its clock is not set"),
        (Rules(unmetered=True), Readings(metered=True), "its link is metered"),
    ],
)
def test_each_rule_by_itself(rules: Rules, bad: Readings, says: str) -> None:
    assert judged(rules, GOOD).problem == ""
    assert says in judged(rules, bad).problem


def test_a_battery_does_not_matter_while_there_is_power() -> None:
    assert judged(Rules(min_battery=40), Readings(power=True, battery=5.0)).problem == ""


@given(
    start=st.integers(0, DAY_MIN - 1),
    length=st.integers(1, DAY_MIN - 1),
    minute=st.integers(0, DAY_MIN - 1),
)
def test_hours_are_those_that_a_walk_over_the_clock_finds(start: int, length: int, minute: int) -> None:
    """The second implementation walks from the start, minute by minute, over midnight if it comes to that."""
    midnight = datetime(2026, 11, 23)  # noqa: DTZ001 - the local clock of a device
    within = {(midnight + timedelta(minutes=start + step)).time() for step in range(length)}
    hours = Hours(start, (start + length) % DAY_MIN)
    assert hours.include(minute) == ((midnight + timedelta(minutes=minute)).time() in within)


def test_hours_may_be_the_whole_day_and_several() -> None:
    assert all(Hours(60, 60).include(minute) for minute in range(DAY_MIN))
    two = Rules(hours=(Hours(60, 120), Hours(600, 660)))
    assert judged(two, Readings(minute=610)).problem == ""
    assert "next from 10:00 on" in judged(two, Readings(minute=120)).problem
    assert "next from 01:00 on" in judged(two, Readings(minute=660)).problem


def test_a_clock_that_nothing_keeps_right_is_said() -> None:
    rules = Rules(hours=(Hours(60, 120),))
    assert "not synchronised" in judged(rules, Readings(minute=0, synchronised=False)).problem
    assert "synchronised" not in judged(rules, Readings(minute=0)).problem


@pytest.mark.parametrize(
    "rules",
    [Rules(power=True), Rules(min_battery=40), Rules(max_temperature=70), Rules(unmetered=True)],
)
def test_what_the_board_cannot_tell_holds_or_not_as_is_stated(rules: Rules) -> None:
    lenient = judged(rules, Readings(minute=0))
    assert lenient.problem == ""
    assert len(lenient.untold) == 1
    assert "trains all the same" in lenient.untold[0]
    strict = judged(Rules(**{**vars(rules), "rest_untold": True}), Readings(minute=0))
    assert strict.problem
    assert "does not train then" in strict.untold[0]


def test_a_temperature_about_its_limit_does_not_make_it_waver() -> None:
    conditions = Conditions(Rules(max_temperature=70))
    for number, degrees in enumerate([69.0, 71.0, 69.0, 71.0, 66.0]):
        conditions.read(Readings(temperature=("soc", degrees)), now=15.0 * number)
        assert conditions.resting == (number > 0)
    conditions.read(Readings(temperature=("soc", 65.0)), now=100.0)
    assert conditions.next_deadline() == 100.0 + SETTLE_S
    resting = []
    for later in (SETTLE_S - 1, SETTLE_S):
        conditions.pass_time(now=100.0 + later)
        resting.append(conditions.resting)
    assert resting == [True, False]
    assert conditions.next_deadline() is None


def test_power_that_comes_and_goes_is_waited_out() -> None:
    conditions = Conditions(Rules(power=True))
    for number, power in enumerate([True, False, True, True, False, True, True, True]):
        conditions.read(Readings(power=power), now=30.0 * number)
    assert conditions.resting is False  # it has been there since 150 s, for a minute
    assert judged(Rules(power=True), GOOD, Readings(power=False), GOOD, every_s=30.0).resting


def test_the_words_stay_the_same_while_the_reason_does() -> None:
    """They are part of the birth certificate: each change of them is a message."""
    conditions = Conditions(Rules(max_temperature=70))
    said = set()
    for degrees in range(80, 120):
        conditions.read(Readings(temperature=("soc", float(degrees))), now=float(degrees))
        said.add(conditions.problem)
    assert len(said) == 1


def test_the_words_follow_a_reason_that_becomes_another() -> None:
    unset = Conditions(Rules(hours=(Hours(60, 120),)))
    unset.read(Readings(), now=0.0)
    unset.read(Readings(minute=600), now=15.0)
    assert "not set" not in unset.problem
    assert "next from 01:00 on" in unset.problem
    for rules, bad, says in (
        (Rules(power=True, rest_untold=True), Readings(power=False), "it runs on its battery"),
        (Rules(max_temperature=70, rest_untold=True), Readings(temperature=("soc", 80.0)), "soc is at 80"),
        (Rules(min_battery=40, rest_untold=True), Readings(power=False, battery=3.0), "is at 3 %"),
    ):
        conditions = judged(rules, Readings())
        assert "does not tell" in conditions.problem or "no sensor" in conditions.problem
        conditions.read(bad, now=15.0)
        assert says in conditions.problem
        conditions.read(Readings(), now=30.0)
        assert says not in conditions.problem


@given(
    history=st.lists(
        st.tuples(
            st.sampled_from([None, True, False]),
            st.sampled_from([None, 10.0, 42.0, 90.0]),
            st.sampled_from([None, 40.0, 68.0, 90.0]),
            st.sampled_from([None, 0, 720]),
            st.sampled_from([None, True, False]),
            st.floats(0.1, 100.0),
        ),
        min_size=1,
        max_size=12,
    ),
    strict=st.booleans(),
)
def test_whatever_was_read_it_rests_while_something_is_wrong_and_not_much_longer(
    history: list[tuple[bool | None, float | None, float | None, int | None, bool | None, float]],
    *,
    strict: bool,
) -> None:
    rules = Rules(
        power=True,
        min_battery=40,
        max_temperature=70,
        hours=(Hours(600, 800),),
        unmetered=True,
        rest_untold=strict,
    )
    conditions, now = Conditions(rules), 0.0
    for power, battery, degrees, minute, metered, passes in history:
        temperature = None if degrees is None else ("soc", degrees)
        conditions.read(Readings(power, battery, temperature, minute, None, metered), now=now)
        bad = power is False or (degrees or 0) > 70 or metered is True or minute != 720
        assert conditions.resting or not bad
        now += passes
    good = Readings(power=True, battery=100.0, temperature=("soc", 20.0), minute=720, metered=False)
    conditions.read(good, now=now)
    conditions.pass_time(now=now + SETTLE_S)
    assert not conditions.resting


# ------------------------------------------------------------------------------------------------ the machine

NIGHT = Hours(22 * 60, 6 * 60)
ALL = Rules(power=True, max_temperature=70, hours=(NIGHT,), unmetered=True)


@pytest.fixture
def picky(coordinator: ScriptedCoordinator) -> Device:
    """A device with rules that hold so far."""
    device = Device(coordinator, limits=AgentLimits(federation="home", device="dev-1", conditions=ALL))
    device.start()
    device.tell(ConditionsRead(GOOD))
    device.connect()
    device.hear(coordinator.status())
    device.hear(coordinator.announcement())
    device.fetch()
    device.answer(ModelLoaded(coordinator.run, coordinator.versions[-1].number))
    return device


def with_(**changes: Any) -> ConditionsRead:
    return ConditionsRead(Readings(**{**vars(GOOD), **changes}))


def test_while_it_may_it_trains(picky: Device) -> None:
    effects = picky.hear(picky.coordinator.announcement(lease=1, cohort=EVERYBODY))
    assert any(isinstance(ask.request, Train) for ask in of(effects, Ask))


@pytest.mark.parametrize(
    "bad", [{"power": False}, {"temperature": ("soc", 80.0)}, {"minute": 720}, {"metered": True}]
)
def test_while_it_may_not_it_says_why_listens_to_no_round_and_gives_leases_back(
    picky: Device, bad: dict[str, object]
) -> None:
    effects = picky.tell(with_(**bad))
    why = picky.agent.desk.conditions.problem
    assert [presence.problem for presence in bodies(effects, Presence)] == [why]
    assert of(effects, Unsubscribe) == [Unsubscribe((TOPICS.announcement,))]
    assert why in picky.agent.waiting(now=picky.now)
    assert picky.agent.standing().state == "resting"
    assert any(why in note.text for note in of(effects, Note))
    given_back = picky.hear(picky.coordinator.lease("dev-1", 1))
    report = bodies(given_back, Report)
    assert [(each.code, each.lease, each.detail) for each in report] == [("busy", 1, why)]
    assert not of(given_back, Ask)


def test_it_comes_back_by_itself_and_is_told_of_the_round_that_runs(picky: Device) -> None:
    picky.tell(with_(power=False))
    effects = picky.tell(with_())
    assert not bodies(effects, Presence)
    effects = picky.wait(SETTLE_S)
    assert [presence.problem for presence in bodies(effects, Presence)] == [""]
    assert of(effects, Subscribe) == [Subscribe((TOPICS.announcement,))]
    effects = picky.hear(picky.coordinator.announcement(lease=1, cohort=EVERYBODY))
    assert any(isinstance(ask.request, Train) for ask in of(effects, Ask))


@pytest.mark.parametrize("bad", [{"power": False}, {"temperature": ("soc", 80.0)}])
def test_a_training_that_would_hurt_the_board_is_ended_and_the_trainer_comes_back_with_the_conditions(
    picky: Device, bad: dict[str, object]
) -> None:
    picky.hear(picky.coordinator.announcement(lease=1, cohort=EVERYBODY))
    generation = picky.agent.desk.trainer.generation
    effects = picky.tell(with_(**bad))
    assert of(effects, StopTrainer) == [StopTrainer(generation)]
    assert [(report.code, report.lease) for report in bodies(effects, Report)] == [("busy", 1)]
    assert picky.agent.desk.trainer.failures == 0
    assert not of(picky.wait(3_600.0), StartTrainer)  # its memory is given back meanwhile
    picky.tell(with_())
    effects = picky.wait(SETTLE_S)
    assert len(of(effects, StartTrainer)) == 1
    picky.tell(TrainerStarted(picky.agent.desk.trainer.generation))
    picky.answer(OPENED)
    picky.answer(ModelLoaded(picky.coordinator.run, picky.coordinator.versions[-1].number))
    effects = picky.hear(picky.coordinator.announcement(lease=2, cohort=EVERYBODY))
    assert [ask.request.counter for ask in of(effects, Ask) if isinstance(ask.request, Train)] == [2]


def test_a_training_is_finished_when_its_hours_are_over_and_its_update_delivered(picky: Device) -> None:
    picky.hear(picky.coordinator.announcement(lease=1, cohort=EVERYBODY))
    assert not of(picky.tell(with_(minute=6 * 60)), StopTrainer)
    assert len(of(picky.trained(), SendUpdate)) == 1


def test_over_a_metered_link_an_update_waits_until_it_is_not(picky: Device) -> None:
    picky.hear(picky.coordinator.announcement(lease=1, cohort=EVERYBODY))
    picky.tell(with_(metered=True))
    assert not of(picky.trained(), SendUpdate)
    assert not of(picky.wait(3_600.0), SendUpdate)
    picky.tell(with_())
    assert len(of(picky.wait(SETTLE_S), SendUpdate)) == 1


def test_a_connection_made_anew_does_not_make_it_listen(picky: Device) -> None:
    picky.tell(with_(power=False))
    picky.tell(Disconnected("gone"))
    effects = picky.tell(Connected(picky.agent.next_session(), 131_072))
    assert of(effects, Unsubscribe)
    assert not of(effects, Subscribe)
    assert [presence.problem for presence in bodies(effects, Presence)] == [
        picky.agent.desk.conditions.problem
    ]


def test_what_the_board_cannot_tell_is_said_once(coordinator: ScriptedCoordinator) -> None:
    rules = Rules(max_temperature=70)
    device = Device(coordinator, limits=AgentLimits(federation="home", device="dev-1", conditions=rules))
    device.start()
    effects = device.tell(ConditionsRead(Readings()))
    assert ["no sensor" in note.text for note in of(effects, Note)] == [True]
    assert not of(device.tell(ConditionsRead(Readings())), Note)
