"""A blob that is wanted: what is known of it, which of its chunks are there, and whether one more fits.

Each chunk says all about its blob. The manifest, or else the first chunk, is believed; what contradicts it is refused.
What is left of an earlier start is a first chunk's word too, but the oldest: when the coordinator has cut the blob
anew since then, or published another one in its place, the fetch begins anew with that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fedmq_edge_agent.core.state import Link, Part, PartHead
from fedmq_protocol.chunks import NO_HASH, chain_hash, chunk_count
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import BlobRef, Manifest, ModelChunk
from fedmq_protocol.topics import BlobKind

Key = tuple[BlobKind, int]


@dataclass
class Fetch:
    """A blob that is wanted.

    Attributes:
        key: which.
        max_bytes: the most that it may have, by the manifest.
        pinned: size and hash, where the manifest tells them.
        head: from the first chunk, or from the disk.
        got: the chunks that are there.
        finishing: all are; the shell checks the hash.
        untold: `head` comes from the disk, and no chunk has confirmed it.
    """

    key: Key
    max_bytes: int
    pinned: BlobRef | None = None
    head: PartHead | None = None
    got: set[int] = field(default_factory=set)
    finishing: bool = False
    untold: bool = False

    @property
    def ref(self) -> BlobRef | None:
        """Size and hash, from the manifest, or else from `head`; None: nothing is known of it."""
        return self.pinned if self.pinned is not None or self.head is None else self.head.link.ref

    @property
    def complete(self) -> bool:
        """Whether all chunks are there."""
        return self.head is not None and len(self.got) == self.head.count

    @property
    def missing_bytes(self) -> int | None:
        """About how much is still to come; None: nothing is known of it."""
        ref = self.ref
        if ref is None:
            return None
        chunk_bytes = 0 if self.head is None else self.head.chunk_bytes
        return max(0, ref.size - len(self.got) * chunk_bytes)

    def missing(self) -> Iterator[int]:
        """The chunks that lack, in order; the first alone while nothing is known."""
        if self.head is None:
            yield 0
        else:
            yield from (index for index in range(self.head.count) if index not in self.got)

    def resume(self, part: Part, manifest: Manifest) -> bool:
        """Go on with what is on disk; False if it is of another blob than the one that is wanted."""
        link = part.head.link
        if (self.pinned is not None and link.ref != self.pinned) or link.ref.size > self.max_bytes:
            return False
        if not _may_be(link, manifest):
            return False
        self.head, self.got, self.untold = part.head, set(part.have), True
        return True

    def begin_anew(self) -> None:
        """Forget what is there."""
        self.got.clear()
        self.head, self.finishing, self.untold = None, False, False

    def learn(self, chunk: ModelChunk, manifest: Manifest | None) -> bool:
        """Hold what a chunk says of its blob against the manifest and the first chunk's word.

        Returns:
            Whether it is to be taken; otherwise the coordinator has cut the blob anew, and the first chunk is needed.

        Raises:
            RemoteError: it contradicts the manifest, another chunk, or the bounds.
        """
        if self.pinned is not None and chunk.ref != self.pinned:
            raise _wrong(chunk, "its blob is not the one of the manifest")
        if chunk.ref.size > self.max_bytes:
            raise _wrong(chunk, f"a blob of {chunk.ref.size} bytes, above the manifest's {self.max_bytes}")
        link = Link(
            blob=chunk.blob,
            version=chunk.version,
            ref=chunk.ref,
            chain_hash=chunk.chain_hash,
            rebase=chunk.rebase and chunk.blob == "delta",
            replica_hash=chunk.replica_hash,
        )
        if self.head is not None and self.untold and not _fits(self.head, link, chunk):
            self.begin_anew()
            if chunk.index != 0:
                return False
        if self.head is None:
            self.head = _first(link, chunk, manifest)
        elif link != self.head.link or chunk.count != self.head.count:
            raise _wrong(chunk, "it contradicts the first one")
        if not _fits(self.head, link, chunk):
            raise _wrong(chunk, f"it has {len(chunk.data)} bytes, not {self.head.size(chunk.index)}")
        self.untold = False
        return True


def _fits(head: PartHead, link: Link, chunk: ModelChunk) -> bool:
    return (
        link == head.link
        and chunk.index < chunk.count == head.count
        and len(chunk.data) == head.size(chunk.index)
    )


def _first(link: Link, chunk: ModelChunk, manifest: Manifest | None) -> PartHead:
    if chunk.index != 0:
        raise _wrong(chunk, "it came before the first")
    if chunk.count > 1 and not chunk.data:
        raise _wrong(chunk, "it is empty")
    chunk_bytes = max(1, len(chunk.data))
    if chunk_count(chunk.ref.size, chunk_bytes) != chunk.count:
        raise _wrong(chunk, f"{chunk.count} chunks of {len(chunk.data)} bytes do not make {chunk.ref.size}")
    if not _may_be(link, manifest):
        raise RemoteError(
            f"{link.blob} {link.version} has another chain hash than its manifest, or begins none",
            reason="bad-chain",
        )
    return PartHead(link=link, count=chunk.count, chunk_bytes=chunk_bytes)


def _may_be(link: Link, manifest: Manifest | None) -> bool:
    """Whether a blob's place in the chain of hashes is one that it can have, as far as that is known."""
    newest = manifest is not None and link.version == manifest.version
    if newest and manifest is not None and link.chain_hash != manifest.chain_hash:
        return False
    begins = link.blob == "snapshot" and link.version == 0
    return not begins or link.chain_hash == chain_hash(NO_HASH, link.ref.sha256)


def _wrong(chunk: ModelChunk, what: str) -> RemoteError:
    return RemoteError(f"{chunk.blob} {chunk.version}, chunk {chunk.index}: {what}", reason="bad-chunk")
