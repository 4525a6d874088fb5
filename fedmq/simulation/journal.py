"""The coordinator's journal in memory: facts as bytes, all of a batch or none; and the newest checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fedmq_coordinator.core.blobs import MemoryBlob
from fedmq_coordinator.core.checkpoint import Checkpoint
from fedmq_coordinator.core.facts import Fact, dump, load


class VirtualJournal:
    """What survives a kill of the coordinator.

    Facts never change. So they are turned into bytes when somebody reads them first, and each is read back from them
    once: whoever reads gets facts that are made of bytes.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[str, bytes]] = []
        self._fresh: list[Fact] = []
        self._read: list[Fact] = []
        self.last_at = 0.0
        self.checkpoint: MemoryBlob | None = None
        self._checkpointed = 0

    def __len__(self) -> int:
        return len(self._rows) + len(self._fresh)

    def append(self, facts: Sequence[Fact]) -> None:
        """All of them are on disk when this returns."""
        self._fresh += facts
        if facts:
            self.last_at = facts[-1].at

    @property
    def num_after_checkpoint(self) -> int:
        """How many facts have come since."""
        return len(self) - self._checkpointed

    def keep(self, checkpoint: Checkpoint | None) -> None:
        """Let it be the newest one, if there is one now."""
        if checkpoint is not None:
            self.checkpoint = MemoryBlob(b"".join(checkpoint.pieces()))
            self._checkpointed = checkpoint.number

    @property
    def rows(self) -> list[tuple[str, bytes]]:
        """Kinds and bytes."""
        self._rows += [dump(fact) for fact in self._fresh]
        self._fresh.clear()
        return self._rows

    def read(self) -> Iterator[Fact]:
        """Every fact, from its bytes."""
        return self.after(0)

    def after(self, number: int) -> Iterator[Fact]:
        """The facts with larger numbers, which begin with 1."""
        return iter(self._facts()[number:])

    def fetch(self, numbers: Collection[int]) -> dict[int, Fact]:
        """Facts by their numbers."""
        facts = self._facts()
        return {number: facts[number - 1] for number in numbers}

    def _facts(self) -> list[Fact]:
        self._read += [load(kind, data) for kind, data in self.rows[len(self._read) :]]
        return self._read
