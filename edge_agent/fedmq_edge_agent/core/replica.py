"""Which model versions are on disk, as one unbroken chain of hashes, and what the trainer must do to hold the newest.

The chain is a snapshot and the deltas after it. Every link was checked before it was joined: its bytes against their
SHA-256, and SHA-256(hash before || that SHA-256) against the signed chain hash. So a trainer that lost its replica, or
an agent that was restarted, gets it back from disk, bit for bit, without a download.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedmq_edge_agent.core.effects import ApplyDelta, LoadSnapshot
from fedmq_edge_agent.core.state import Link, ModelIndex, blob_file
from fedmq_protocol.chunks import NO_HASH, chain_hash
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import BlobRef
from fedmq_protocol.topics import BlobKind


class Replica:
    """The versions of one run that this device has.

    Args:
        run: which run.
        index: what was on disk when the agent started.
    """

    def __init__(self, run: str, index: ModelIndex) -> None:
        self.run = run
        self._links: list[Link] = list(index.links)
        self._ahead: dict[int, Link] = {}
        self.loaded: int | None = None
        """The version that the trainer's replica is; None: it has none."""

    @property
    def index(self) -> ModelIndex:
        return ModelIndex(links=tuple(self._links))

    @property
    def held(self) -> int | None:
        """The newest version whose whole chain is on disk."""
        return self._links[-1].version if self._links else None

    @property
    def base(self) -> int | None:
        """The version of the snapshot on disk."""
        return self._links[0].version if self._links else None

    @property
    def chain_hash(self) -> bytes | None:
        """The chain hash of `held`."""
        return self._links[-1].chain_hash if self._links else None

    def has(self, version: int) -> bool:
        """Whether the delta of `version` is on disk, joined or waiting for those before it."""
        joined = self.base is not None and self.held is not None and self.base < version <= self.held
        return joined or version in self._ahead

    def join(self, link: Link) -> list[str]:
        """Take a file that is on disk into the chain, or keep it until the files before it come.

        Returns:
            Names of files that are of no use any more.

        Raises:
            RemoteError: its hash does not continue the chain; whoever caught this starts over with `drop`.
        """
        if link.blob == "snapshot":
            if self.held is not None and self.held >= link.version:
                return [link.file]
            useless = [old.file for old in self._links]
            useless += [old.file for old in self._ahead.values() if old.version <= link.version]
            self._links = [link]
        elif self.held is not None and link.version <= self.held:
            return []
        else:
            self._ahead[link.version] = link
            useless = []
        self._ahead = {
            version: ahead for version, ahead in self._ahead.items() if version > (self.held or -1)
        }
        while self.held is not None and (following := self._ahead.pop(self.held + 1, None)) is not None:
            self._check(following)
            self._links.append(following)
        return useless

    def _check(self, link: Link) -> None:
        if chain_hash(self.chain_hash or NO_HASH, link.ref.sha256) != link.chain_hash:
            raise RemoteError(
                f"version {link.version} does not continue the chain of hashes", reason="bad-chain"
            )

    def lose(self, blob: BlobKind, version: int) -> None:
        """A file that was taken into the chain could not be written: what follows it waits for it again."""
        lost = (blob, version)
        self._ahead = {
            number: link for number, link in self._ahead.items() if (link.blob, link.version) != lost
        }
        for place, link in enumerate(self._links):
            if (link.blob, link.version) == lost:
                self._ahead |= {later.version: later for later in self._links[place + 1 :]}
                self._links = self._links[:place]
                break

    def rebased(self, version: int, snapshot: BlobRef) -> list[str]:
        """The trainer wrote `version` as a snapshot: begin the chain there, and return the names of what is useless."""
        place = next((place for place, link in enumerate(self._links) if link.version == version), None)
        if place is None or not self._links[place].rebase:
            return [blob_file("snapshot", version)]
        old = self._links[place]
        useless = [link.file for link in self._links[: place + 1]]
        start = Link(
            blob="snapshot",
            version=version,
            ref=snapshot,
            chain_hash=old.chain_hash,
            replica_hash=old.replica_hash,
        )
        self._links = [start, *self._links[place + 1 :]]
        return useless

    def drop(self) -> list[str]:
        """Forget everything, since hashes disagree; return the names of the files."""
        names = [link.file for link in self._all()]
        self._links, self._ahead, self.loaded = [], {}, None
        return names

    def _all(self) -> Iterable[Link]:
        yield from self._links
        yield from self._ahead.values()

    def next_step(self) -> LoadSnapshot | ApplyDelta | None:
        """What brings the trainer one step nearer to `held`; None when it is there."""
        if self.held is None or self.loaded == self.held:
            return None
        first = self._links[0]
        if self.loaded is None or self.loaded < first.version or self.loaded > self.held:
            return LoadSnapshot(
                run=self.run,
                version=first.version,
                file=first.file,
                ref=first.ref,
                replica_hash=first.replica_hash,
            )
        link = self._links[self.loaded + 1 - first.version]
        return ApplyDelta(
            run=self.run,
            version=link.version,
            file=link.file,
            ref=link.ref,
            rebase=link.rebase,
            replica_hash=link.replica_hash,
            snapshot_file=blob_file("snapshot", link.version) if link.rebase else None,
        )
