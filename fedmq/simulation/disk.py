"""A device's folder in memory: what is durable, what is a cache that a power cut may take, and a disk that refuses.

As with `fedmq_edge_agent.shell.disk`, the state, the pinned key and the trainer's files are there or not, and never
half; model files, their list and their parts are not flushed, so that a power cut may lose or tear them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Final

from fedmq_edge_agent.core.state import (
    AgentState,
    Link,
    ModelIndex,
    Part,
    PartHead,
    blob_file,
    dump_index,
    dump_state,
    have_file,
    load_index,
    load_state,
    part_file,
)
from fedmq_edge_agent.shell.writing import DiskError
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.messages import BlobRef
from fedmq_protocol.topics import BlobKind

_TORN: Final = 2
_PART: Final = ".part"
_LIST: Final = ".have"


@dataclass
class VirtualDisk:
    """What survives the power switch.

    Attributes:
        state: what the last commit left.
        pinned: the coordinator's key.
        indexes: which model files there are, by run.
        files: by run and name.
        parts: model files that are being fetched, by run and name: what they are, and their chunks.
        full: it takes nothing more.
        refused: how often it did not.
    """

    state: AgentState = field(default_factory=AgentState)
    pinned: bytes | None = None
    indexes: dict[str, ModelIndex] = field(default_factory=dict)
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    parts: dict[tuple[str, str], tuple[PartHead, dict[int, bytes]]] = field(default_factory=dict)
    full: bool = False
    refused: int = 0
    _unflushed: dict[tuple[str, str], None] = field(default_factory=dict)
    _placed: dict[tuple[str, str], tuple[PartHead, dict[int, bytes]]] = field(default_factory=dict)
    """Of files that were put in place, what they were made of: while their lists are there they can be parts again."""

    # ------------------------------------------------------------------------------ writing

    def _room(self) -> None:
        if self.full:
            self.refused += 1
            raise DiskError(OSError(errno.ENOSPC, "No space left on device"), Path("state_dir"))

    def save_state(self, state: AgentState) -> None:
        """Durable when it returns.

        Raises:
            DiskError: the disk is full; so with all that writes.
        """
        self._room()
        self.state = state

    def pin(self, public_key: bytes) -> None:
        self._room()
        self.pinned = public_key

    def save_index(self, run: str, index: ModelIndex) -> None:
        self._room()
        self.indexes[run] = index

    def write(self, run: str, name: str, data: bytes, *, durable: bool) -> None:
        """A whole file."""
        self._room()
        self.files[run, name] = data
        if not durable:
            self._unflushed[run, name] = None

    def write_chunk(self, run: str, head: PartHead, index: int, data: bytes) -> None:
        """A chunk of a model file that is being fetched."""
        self._room()
        name = run, part_file(head.link.blob, head.link.version)
        if name not in self.parts or self.parts[name][0] != head:
            self.parts[name] = head, {}
        self.parts[name][1][index] = data

    def finish_blob(
        self, run: str, blob: BlobKind, version: int, ref: BlobRef
    ) -> tuple[bool, tuple[int, ...]]:
        """Put a fetched file in place if it is what was promised; otherwise say which chunks are not there."""
        name = run, part_file(blob, version)
        part = self.parts.get(name)
        if part is None:
            return False, (0,)
        head, chunks = part
        missing = tuple(index for index in range(head.count) if index not in chunks)
        if missing:
            return False, missing
        del self.parts[name]
        data = b"".join(chunks[index] for index in range(head.count))
        if blob_ref(data) != ref:
            return False, ()
        self._placed[name] = part
        self.files[run, blob_file(blob, version)] = data  # renamed, which takes no room
        self._unflushed[run, blob_file(blob, version)] = None
        return True, ()

    def try_room(self) -> None:
        """Find out whether it takes anything.

        Raises:
            DiskError: it does not.
        """
        self._room()

    def remove(self, run: str, names: tuple[str, ...]) -> None:
        """Files, parts and lists of chunks; those that are not there are no error."""
        for name in names:
            self.files.pop((run, name), None)
            part = name.removesuffix(_LIST)
            self.parts.pop((run, part), None)
            if part != name:
                self._placed.pop((run, part), None)

    def remove_run(self, run: str) -> None:
        """All of a run."""
        self.files = {key: data for key, data in self.files.items() if key[0] != run}
        self.parts = {key: part for key, part in self.parts.items() if key[0] != run}
        self._placed = {key: part for key, part in self._placed.items() if key[0] != run}
        self.indexes.pop(run, None)

    # ------------------------------------------------------------------------------ reading

    def holds(self, run: str, name: str, ref: BlobRef) -> bool:
        """Whether a file is there and the one that `ref` names."""
        data = self.files.get((run, name))
        return data is not None and blob_ref(data) == ref

    # ------------------------------------------------------------------------------ the power switch

    def power_cut(self, draw: Callable[[int], int] | None = None) -> None:
        """What was not flushed is kept (0), lost (1) or torn (2), as `draw(3)` says of each; None: all is kept."""
        for name in list(self._unflushed) if draw is not None else ():
            assert draw is not None
            fate = draw(_TORN + 1)
            if fate and name in self.files:
                data = self.files.pop(name)
                if fate == _TORN:
                    self.files[name] = data[: len(data) // 2].ljust(len(data), b"\0")
        for name, (_, chunks) in self.parts.items() if draw is not None else ():
            assert draw is not None
            for index in list(chunks):
                if draw(_TORN + 1):
                    del chunks[index]  # a chunk that does not fit its hash is not believed: lost is as torn
            self.parts[name] = self.parts[name][0], chunks
        self._unflushed.clear()

    def copy(self) -> VirtualDisk:
        """A backup of it."""
        parts = {name: (head, dict(chunks)) for name, (head, chunks) in self.parts.items()}
        return VirtualDisk(self.state, self.pinned, dict(self.indexes), dict(self.files), parts)

    def restore(self, backup: VirtualDisk) -> None:
        """Put a backup in place of all that is here."""
        fresh = backup.copy()
        for name in ("state", "pinned", "indexes", "files", "parts", "_unflushed"):
            setattr(self, name, getattr(fresh, name))

    def wipe(self) -> None:
        """A new memory card."""
        self.__init__()  # type: ignore[misc]

    def load(self) -> tuple[AgentState, dict[str, ModelIndex], dict[str, tuple[Part, ...]]]:
        """What a start begins with, through the very bytes of the files; what nothing refers to is removed."""
        state = load_state(dump_state(self.state))
        for run in dict.fromkeys([run for run, _ in (*self.files, *self.parts)] + list(self.indexes)):
            if run not in state.runs:
                self.remove_run(run)
        indexes = {
            run: self._unbroken(run, load_index(dump_index(index))) for run, index in self.indexes.items()
        }
        kept = {(run, pending.file) for run, known in state.runs.items() for pending in known.pending}
        kept |= {(run, known.residual_file or "") for run, known in state.runs.items()}
        for run, index in indexes.items():
            kept |= {(run, link.file) for link in index.links}
            for link in index.links:  # of what is in the chain, nothing is being fetched
                self.remove(run, (have_file(link.blob, link.version),))
        for (run, name), part in self._placed.items():  # put in place and never noted: all of it is there
            whole, data = (run, name.removesuffix(_PART)), b"".join(part[1][n] for n in sorted(part[1]))
            if (run, name) not in self.parts and self.files.get(whole) == data:
                del self.files[whole]
                self.parts[run, name] = part
        self._placed.clear()
        self.files = {name: data for name, data in self.files.items() if name in kept}
        parts: dict[str, tuple[Part, ...]] = {}
        for (run, _), (head, chunks) in sorted(self.parts.items(), key=lambda item: item[0]):
            if chunks:
                parts[run] = (*parts.get(run, ()), Part(head, frozenset(chunks)))
        return state, indexes, parts

    def _unbroken(self, run: str, index: ModelIndex) -> ModelIndex:
        """As much of a chain as has its files."""

        def is_there(link: Link) -> bool:
            return len(self.files.get((run, link.file), b"")) == link.ref.size

        return ModelIndex(links=tuple(takewhile(is_there, index.links)))
