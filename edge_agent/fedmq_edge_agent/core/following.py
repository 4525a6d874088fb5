"""Following a run: its versions come in, are checked, joined to the chain, and handed to the trainer one by one.

Whenever hashes disagree, nothing of the run's model is believed any more: it begins again with the snapshot, at once
the first time, and later and later after that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fedmq_edge_agent.core.backoff import Backoff, Chance
from fedmq_edge_agent.core.download import Pull
from fedmq_edge_agent.core.effects import (
    ApplyDelta,
    Effect,
    FinishBlob,
    LoadSnapshot,
    Note,
    RemoveFiles,
    SaveModelIndex,
    StoreBlob,
    WriteBlobPart,
)
from fedmq_edge_agent.core.events import BlobFinished, ModelLoaded
from fedmq_edge_agent.core.replica import Replica
from fedmq_edge_agent.core.state import Link, ModelIndex, Part, have_file
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import Announcement, Manifest, ModelChunk
from fedmq_protocol.topics import Topics

AGAIN = Backoff(first_s=2.0, longest_s=300.0)
MAX_CHAIN = 65_536
"""More deltas after a snapshot than any coordinator publishes."""
TELL_FAILURES = 3
"""After so many disagreements of hashes in a row the operator is told."""


class Following:
    """The model of the run that this device follows.

    Args:
        run: its name.
        index: its files on disk.
        topics: of the federation.
        device: who follows.
        chance: for jitter.
        parts: what is on disk of files that were being fetched.
    """

    def __init__(
        self,
        run: str,
        index: ModelIndex,
        *,
        topics: Topics,
        device: str,
        chance: Chance,
        parts: Iterable[Part] = (),
    ) -> None:
        self.run = run
        self.replica = Replica(run, index)
        self.pull = Pull(self.replica, topics=topics, device=device, chance=chance, parts=parts)
        self._chance = chance
        self._manifest: Manifest | None = None
        self._failures = 0
        self._trouble = ""
        self._told = False
        self._era = 0
        self._asked_era = 0
        self._garbage: list[str] = []
        self._index_dirty = False
        self.disk_takes = True
        """Otherwise nothing is written: what comes is not kept, and comes again."""

    @property
    def newest(self) -> int | None:
        """The newest version that was announced."""
        return None if self._manifest is None else self._manifest.version

    @property
    def trainer_is_up_to_date(self) -> bool:
        """Whether the trainer holds all that is on disk."""
        return self.replica.loaded is not None and self.replica.loaded == self.replica.held

    # ------------------------------------------------------------------------------ what arrives

    def announced(self, announcement: Announcement, *, now: float) -> list[Effect]:
        """Aim at the announced version, and take its delta if it came along.

        Raises:
            RemoteError: the manifest cannot be, or the inline delta is not the one that it pins.
        """
        manifest, inline = announcement.manifest, announcement.inline_delta
        if not 0 <= manifest.version - manifest.base <= MAX_CHAIN:
            raise RemoteError(
                f"a chain from {manifest.base} to {manifest.version} is none, or too long",
                reason="bad-manifest",
            )
        if inline is not None and (
            manifest.delta is None
            or len(inline) != manifest.delta.size
            or hashlib.sha256(inline).digest() != manifest.delta.sha256
        ):
            raise RemoteError("the inline delta is not the one that the manifest pins", reason="bad-hash")
        self._manifest = manifest
        effects: list[Effect] = []
        held = self.replica.held
        if held is not None and held > manifest.version:
            effects += self.start_over("the announced version is older than the one held", now=now)
        elif held == manifest.version and self.replica.chain_hash != manifest.chain_hash:
            effects += self.start_over(
                "the announced version has another chain hash than the one held", now=now
            )
        new = (self.replica.held is None or self.replica.held < manifest.version) and not self.replica.has(
            manifest.version
        )
        if inline is not None and manifest.delta is not None and new and self.disk_takes:
            effects.append(StoreBlob(self.run, "delta", manifest.version, inline))
            link = Link(
                blob="delta",
                version=manifest.version,
                ref=manifest.delta,
                chain_hash=manifest.chain_hash,
                rebase=manifest.rebase,
                replica_hash=manifest.replica_hash,
            )
            effects += self._join(link, now=now)
        return effects + self.pull.aim(manifest, now=now)

    def chunk(self, chunk: ModelChunk, *, own_topic: bool, now: float) -> list[Effect]:
        """Take a chunk.

        Raises:
            RemoteError: it contradicts what is known.
        """
        if not self.disk_takes:
            return []
        effects, link = self.pull.received(chunk, retained=own_topic)
        return effects if link is None else [*effects, *self._join(link, now=now), *self._aim(now=now)]

    def blob(self, event: BlobFinished, *, now: float) -> list[Effect]:
        """A blob of several chunks was put together."""
        link = self.pull.finished(event.blob, event.version, ok=event.ok, damaged=event.damaged)
        if link is not None:
            self._garbage.append(have_file(link.blob, link.version))
            return [*self._join(link, now=now), *self._aim(now=now)]
        if event.ok:
            return []
        what = f"{event.blob} {event.version}"
        if event.damaged:
            text = f"the disk did not keep {len(event.damaged)} of the chunks of {what}; fetching those again"
        else:
            text = f"{what} as the coordinator sent it has another hash than it promised; fetching it again"
        return [Note("warning", text, {"run": self.run})]

    def _aim(self, *, now: float) -> list[Effect]:
        return [] if self._manifest is None else self.pull.aim(self._manifest, now=now)

    def _join(self, link: Link, *, now: float) -> list[Effect]:
        try:
            self._garbage += self.replica.join(link)
        except RemoteError as error:
            return self.start_over(str(error), now=now)
        self._index_dirty = True
        manifest, held = self._manifest, self.replica.held
        if (
            manifest is not None
            and held == manifest.version
            and self.replica.chain_hash != manifest.chain_hash
        ):
            return self.start_over("the chain of hashes ends elsewhere than the coordinator's", now=now)
        return []

    def start_over(self, why: str, *, now: float) -> list[Effect]:
        """Drop every model file, and begin with the snapshot."""
        wait_s = 0.0 if not self._failures else AGAIN.wait_s(self._failures - 1, self._chance)
        self._failures += 1
        self._era += 1
        if self._failures >= TELL_FAILURES:
            self._trouble = (
                f"{self._failures} attempts in a row did not give the announced model, last: {why}"
            )
        self._garbage += self.replica.drop()
        self._index_dirty = True
        return [
            Note("warning", f"{why}; starting again from a snapshot", {"run": self.run}),
            *self.flush(),
            *self.pull.start_over(not_before=now + wait_s),
            *self._aim(now=now),
        ]

    # ------------------------------------------------------------------------------ the trainer

    def next_step(self) -> LoadSnapshot | ApplyDelta | None:
        """What the trainer is to be asked for next; the caller asks."""
        step = self.replica.next_step()
        if step is not None:
            self._asked_era = self._era
        return step

    def loaded(self, loaded: ModelLoaded) -> None:
        """The trainer did a step; void if the files were dropped meanwhile."""
        if loaded.run != self.run or self._asked_era != self._era:
            return
        self.replica.loaded = loaded.version
        if loaded.snapshot is not None:
            self._garbage += self.replica.rebased(loaded.version, loaded.snapshot)
            self._index_dirty = True
        if loaded.version == self.newest:
            self._failures, self._trouble, self._told = 0, "", False

    def trainer_lost_it(self) -> None:
        """The trainer has no replica any more."""
        self.replica.loaded = None
        self._era += 1

    # ------------------------------------------------------------------------------ time and disk

    def poll(self, *, now: float, received: int) -> list[Effect]:
        """Ask for chunks that are due; `received` are the bytes received on the socket so far."""
        effects = self.pull.poll(now=now, received=received)
        if self.pull.unreachable and not self._trouble:
            self._trouble = f"no answer to requests for {self.pull.progress}"
        return effects

    def not_written(self, effect: SaveModelIndex | StoreBlob | WriteBlobPart | FinishBlob) -> None:
        """The disk did not take a file, or a part of one."""
        if effect.run != self.run:
            return
        match effect:
            case SaveModelIndex():
                pass
            case StoreBlob(_, blob, version):
                self.replica.lose(blob, version)
                self._era += 1
            case WriteBlobPart() | FinishBlob():
                self.pull.not_written(effect)
        self._index_dirty = True

    def disk_mended(self, *, now: float) -> list[Effect]:
        """Go on with what could not be written."""
        self.disk_takes = True
        return [*self.pull.finish_whole(), *self._aim(now=now)]

    def give_up_files(self, *, now: float) -> list[Effect]:
        """Make room: the model is fetched again. Without effects where there is nothing to give up."""
        names = list(dict.fromkeys([*self._garbage, *self.replica.drop()]))
        self._garbage.clear()
        self._era += 1
        self._index_dirty = True
        parts = self.pull.start_over(not_before=now)
        return [RemoveFiles(self.run, tuple(names)), *parts] if names else parts

    @property
    def is_void(self) -> bool:
        """Whether the trainer's last request was about files that are gone since."""
        return self._asked_era != self._era

    def take_trouble(self) -> str:
        """What the operator should be told, once; empty when there is nothing new."""
        if not self._trouble or self._told:
            return ""
        self._told = True
        return self._trouble

    def flush(self) -> list[Effect]:
        """Write down which files there are, then remove those of no use."""
        if not self._index_dirty or not self.disk_takes:
            return []
        self._index_dirty = False
        names = tuple(_unique(self._garbage, but=self.replica.index)) if self._garbage else ()
        self._garbage.clear()
        effects: list[Effect] = [SaveModelIndex(self.run, self.replica.index)]
        return [*effects, RemoveFiles(self.run, names)] if names else effects


def _unique(names: Iterable[str], *, but: ModelIndex) -> list[str]:
    kept = {link.file for link in but.links}
    return [name for name in dict.fromkeys(names) if name not in kept]
