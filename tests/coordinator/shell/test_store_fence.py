"""The fence: whoever began an earlier epoch writes nothing more, whatever it is about to write."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable

import pytest

from fedmq_coordinator.core.blobs import PIECE_BYTES
from fedmq_coordinator.core.facts import EpochBegun, UpdateAccepted
from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_fence import FencedError
from tests.coordinator.shell.places import Place
from tests.coordinator.shell.some_facts import accepted, created, published, step


def overtake(place: Place) -> None:
    """As a coordinator on another machine does when it opens the journal."""
    place.query("UPDATE fence SET epoch = epoch + 1, host = 'hub', pid = 7, since = 0")


def test_each_opening_begins_an_epoch(place: Place) -> None:
    epochs = []
    for _ in range(3):
        journal = place.open()
        epochs.append(journal.epoch)
        journal.close()
    assert epochs == [1, 2, 3]


def test_the_epoch_is_above_that_of_facts_from_elsewhere(place: Place) -> None:
    journal = place.open()
    journal.append([EpochBegun(at=1.0, epoch=41)])
    journal.append([EpochBegun(at=2.0, epoch=7)])  # it never goes back
    journal.check_fence()
    journal.close()
    again = place.open()
    assert again.epoch == 42
    again.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda journal: journal.append([EpochBegun(at=2.0, epoch=1)]),
        lambda journal: journal.append([EpochBegun(at=2.0, epoch=99)]),
        lambda journal: journal.keep_note("standing", b"old"),
        lambda journal: journal.remember_source("r", "/old.py"),
        lambda journal: journal.begin_blob().write(bytes(PIECE_BYTES + 1)),
        lambda journal: journal.drop(journal.plan(RetentionSettings(), best={"r": 1}, now=9.0)),
        lambda journal: journal.check_fence(),
    ],
    ids=["fact", "epoch", "note", "source", "bulk", "retention", "nothing"],
)
def test_after_a_newer_epoch_nothing_is_written(
    journal: Journal, place: Place, write: Callable[[Journal], object]
) -> None:
    facts = [created(), published(0, private=b"a"), accepted(1, b"u"), step(), published(1, private=b"b")]
    journal.append(facts)
    overtake(place)
    tables = ("facts", "bulk", "pruned", "dropped", "notes", "sources", "fence")
    before = [place.query(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    with pytest.raises(
        FencedError,
        match=rf"\(pid 7 on hub\) has begun epoch 2 on {re.escape(place.name)}, after this one's 1",
    ):
        write(journal)
    assert [place.query(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables] == before
    assert list(journal.read()) == facts  # it may still look


def test_a_newer_one_that_comes_in_the_middle_has_the_last_word(postgres_place: Place) -> None:
    """The older appends as fast as it can while the newer opens, reads and appends."""
    older, written = postgres_place.open(), []
    started = threading.Event()

    def write_on() -> None:
        for number in itertools.count():
            try:
                older.append([accepted(number, b"older")])
            except FencedError:
                return
            written.append(number)
            started.set()

    thread = threading.Thread(target=write_on)
    thread.start()
    assert started.wait(60)
    newer = postgres_place.elsewhere.open(take_over=True)
    seen = newer.num_facts
    newer.append([EpochBegun(at=2.0, epoch=newer.epoch)])
    thread.join(60)
    assert not thread.is_alive()
    facts = list(newer.read())
    assert [fact.counter for fact in facts[:-1] if isinstance(fact, UpdateAccepted)] == written
    assert (len(facts), facts[-1]) == (seen + 1, EpochBegun(at=2.0, epoch=newer.epoch))
    older.close()
    newer.close()
