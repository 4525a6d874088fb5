"""A receipt is final: what was said of an update is said of it again, for runs that are over, too, and of it alone."""

from __future__ import annotations

import hashlib

import pytest

from fedmq_coordinator.core.state import RUNS_ANSWERED
from fedmq_protocol.codecs import baseline
from fedmq_protocol.messages import DIGEST, Receipt, Update
from tests.coordinator.core.world import World, assert_same_bits, settings

ONE = {"selection": {"min_available_devices": 1}, "evaluate_every": 0}


def a_run(world: World, run: str, **fields: object) -> None:
    world.start_run(settings(rounds=1, **ONE | fields), run=run)


def said(receipt: Receipt) -> tuple[str, str, str]:
    return receipt.outcome, receipt.residual, receipt.reason


def test_an_accepted_update_stays_accepted_when_the_next_run_has_begun() -> None:
    world = World()
    world.join("a")
    a_run(world, "r1")
    update = world.update("a", 0.1)
    assert said(world.receipt(world.say(world.devices["a"], "update", update))) == ("accepted", "keep", "")
    a_run(world, "r2")
    assert world.core.active is not None
    assert world.core.active.id == "r2"
    assert said(world.receipt(world.say(world.devices["a"], "update", update))) == ("accepted", "keep", "")
    world.restart()
    assert said(world.receipt(world.say(world.devices["a"], "update", update))) == ("accepted", "keep", "")


def test_many_small_runs_are_remembered() -> None:
    world = World()
    world.join("a")
    updates = []
    for number in range(3 * RUNS_ANSWERED):
        a_run(world, f"r{number}")
        updates.append(world.update("a", 0.1, run=f"r{number}"))
        world.say(world.devices["a"], "update", updates[-1])
    for _ in range(2):
        outcomes = {said(world.receipt(world.say(world.devices["a"], "update", each))) for each in updates}
        assert outcomes == {("accepted", "keep", "")}
        world.restart()


def test_of_large_ones_only_the_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmq_coordinator.core.state.OUTCOMES_KEPT", 2)
    world = World()
    world.join("a")
    updates = []
    for number in range(RUNS_ANSWERED + 2):
        run = f"r{number}"
        a_run(world, run)
        updates.append(world.update("a", 0.1, run=run))
        world.say(world.devices["a"], "update", updates[-1])
    outcomes = [said(world.receipt(world.say(world.devices["a"], "update", update))) for update in updates]
    assert outcomes == [("rejected", "discard", "run-over")] + [("accepted", "keep", "")] * (
        RUNS_ANSWERED + 1
    )
    forgotten = world.receipt(world.say(world.devices["a"], "update", updates[0]))
    assert "is not known any more" in forgotten.detail
    assert_same_bits(world.core, world.replayed())


def test_another_update_of_a_used_number_goes_back_to_its_device() -> None:
    """A device that lost its disk trained for its lease again, with other bytes."""
    world = World()
    world.join("a")
    world.start_run(settings(rounds=3, **ONE))
    lease = world.core.runs["r1"].cohort_lease
    first = world.update("a", 0.1, counter=lease, lease=lease)
    assert said(world.receipt(world.say(world.devices["a"], "update", first)))[0] == "accepted"
    second = world.update("a", 0.7, counter=lease, lease=lease)
    assert second.data != first.data
    for _ in range(2):
        assert said(world.receipt(world.say(world.devices["a"], "update", second))) == (
            "rejected",
            "restore",
            "number-used",
        )
        assert said(world.receipt(world.say(world.devices["a"], "update", first)))[0] == "accepted"
        world.restart()
    assert world.core.runs["r1"].num_accepted == 1


def test_so_it_is_with_older_numbers() -> None:
    """The lease that it hears of may be an old one, whose number its updates have passed since."""
    world = World()
    world.join("a")
    world.start_run(settings(mode="fedasync", rounds=9, **ONE))
    leases = []
    for counter in (1, 2, 3):
        leases.append(world.core.runs["r1"].leases["a"].lease)
        assert world.send("a", 0.1, counter=counter, lease=leases[-1]).outcome == "accepted"
    second = world.update("a", 0.7, counter=2, lease=leases[0])
    assert said(world.receipt(world.say(world.devices["a"], "update", second))) == (
        "rejected",
        "restore",
        "number-used",
    )
    assert_same_bits(world.core, world.replayed())


def test_a_receipt_says_for_which_bytes_it_is_to_who_reads_that() -> None:
    """Two updates of one number, the first of them still under way when the disk was replaced."""
    world = World()
    device = world.join("a", codecs=[*baseline(), DIGEST])
    world.start_run(settings(rounds=3, **ONE))
    lease = world.core.runs["r1"].cohort_lease
    first = world.update("a", 0.1, counter=lease, lease=lease)
    second = world.update("a", 0.7, counter=lease, lease=lease)
    for update, outcome in ((first, "accepted"), (second, "rejected"), (first, "accepted")):
        receipt = world.receipt(world.say(device, "update", update))
        assert receipt.outcome == outcome
        assert receipt.digest == hashlib.sha256(update.data).digest()[:8]
    header = world.update("a", 0.1).header.model_copy(update={"run": "r9"})
    unknown = Update(header=header, data=b"")
    assert world.receipt(world.say(device, "update", unknown)).digest == header.payload.sha256[:8]


def test_who_does_not_read_hashes_gets_none() -> None:
    world = World()
    device = world.join("a")
    world.start_run(settings(rounds=3, **ONE))
    assert world.receipt(world.say(device, "update", world.update("a", 0.1))).digest is None
