"""From the journal to the state: out of the newest checkpoint that reads, and the facts after it.

A checkpoint saves time and nothing else: one that does not read, or with which the later facts do not go together, is
passed over with a word in the log, and in the end the journal is folded from its first fact.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from fedmq_coordinator.core.checkpoint import load
from fedmq_coordinator.core.state import FederationState
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_checkpoints import StoredCheckpoint
from fedmq_protocol.errors import StoreError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """Where a start goes on.

    Attributes:
        state: the fold of all facts.
        checkpoint: out of which it came; None: from the first fact.
        num_folded: how many facts were folded after it.
        seconds: how long that took.
    """

    state: FederationState
    checkpoint: StoredCheckpoint | None
    num_folded: int
    seconds: float


def resume(journal: Journal) -> Resumed:
    """Fold a journal.

    Raises:
        StoreError: it is damaged, or contradicts itself.
    """
    began = time.monotonic()
    for stored in journal.checkpoints.list():
        try:
            state = _loaded(journal, stored)
            folded = state.fold(journal.read(after=stored.number))
        except Exception as error:  # noqa: BLE001  # a start that fails by a cache would fail for ever
            said = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
            _log.warning("the checkpoint of fact %d is passed over: %s", stored.number, said)
        else:
            return Resumed(state, stored, folded, time.monotonic() - began)
    state = FederationState()
    folded = state.replay(journal.read, journal.outline)
    return Resumed(state, None, folded, time.monotonic() - began)


def _loaded(journal: Journal, stored: StoredCheckpoint) -> FederationState:
    state = load(journal.checkpoints.read(stored.number), journal.fetch, journal.outline)
    if state.num_facts != stored.number:
        raise StoreError(f"it holds {state.num_facts} facts, and says {stored.number}")
    return state
