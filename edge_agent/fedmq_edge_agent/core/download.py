"""Pulling the model versions that a device lacks, a few chunks at a time.

Subscribing to a retained chunk's exact topic is a GET that the broker answers by itself. What it does not answer
within a time, since it keeps no retained messages or they are gone, the device asks the coordinator for. Every chunk
is signed and says all about its blob: size, hash, number of chunks, and the version's place in the chain of hashes.
So the first chunk of a blob is asked for alone, and the others once its word has been held against the bounds.

At most `WINDOW` chunks are asked for at once: brokers copy a payload for each packet under way, and do not keep to the
limits that a client sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fedmq_edge_agent.core.backoff import Backoff, Chance
from fedmq_edge_agent.core.effects import (
    Effect,
    FinishBlob,
    RemoveFiles,
    Send,
    StoreBlob,
    Subscribe,
    Unsubscribe,
    WriteBlobPart,
)
from fedmq_edge_agent.core.replica import Replica
from fedmq_edge_agent.core.state import Link, part_file
from fedmq_protocol.chunks import NO_HASH, chain_hash, chunk_count
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import BlobRef, Get, Manifest, ModelChunk
from fedmq_protocol.topics import BlobKind, Topics

WINDOW = 4
ANSWER = Backoff(first_s=2.0, longest_s=60.0)
CHAIN_ATTEMPTS = 3
"""After so many unanswered attempts at a delta's chunk, the snapshot is fetched instead."""
REPORT_ATTEMPTS = 4
"""After so many at any chunk, the operator is told; the attempts go on."""

Key = tuple[BlobKind, int]


@dataclass
class _Fetch:
    """A blob that is wanted."""

    key: Key
    max_bytes: int
    ref: BlobRef | None = None
    """From the manifest, or else from the first chunk."""
    count: int | None = None
    chunk_bytes: int = 0
    link: Link | None = None
    got: set[int] = field(default_factory=set)
    finishing: bool = False
    """All chunks are written; the shell checks the hash."""

    def missing(self) -> Iterator[int]:
        if self.count is None:
            yield 0
        else:
            yield from (index for index in range(self.count) if index not in self.got)


@dataclass
class _Asked:
    since: float
    deadline: float
    attempts: int = 0


class Pull:
    """Fetches what `replica` lacks of the newest announced version.

    Args:
        replica: what is there; finished blobs are joined to it by the machine.
        topics: of the federation.
        device: who asks.
        chance: for the jitter of the time-outs.
    """

    def __init__(self, replica: Replica, *, topics: Topics, device: str, chance: Chance) -> None:
        self.replica = replica
        self._topics = topics
        self._device = device
        self._chance = chance
        self._manifest: Manifest | None = None
        self._wanted: dict[Key, _Fetch] = {}
        self._asked: dict[tuple[Key, int], _Asked] = {}
        self._connected = False
        self._chain_fails = False
        """The newest delta could not be had: take the snapshot."""
        self._broker_answers = True
        """Retained chunks come; else the coordinator is asked at once."""
        self.since: float | None = None
        """When the wait for the newest version began; None: it is on disk."""
        self.unreachable = False
        """A chunk did not come in spite of many attempts."""
        self.not_before: float = 0.0
        """Nothing is asked for before, since hashes disagreed."""

    @property
    def busy(self) -> bool:
        """Whether anything lacks."""
        return bool(self._wanted)

    @property
    def wanted_bytes(self) -> int:
        """About what all that lacks takes; for deltas of which nothing is known, what the manifest allows them."""
        known, unknown = 0, False
        for fetch in self._wanted.values():
            if fetch.ref is None:
                unknown = True
            else:
                known += max(0, fetch.ref.size - len(fetch.got) * fetch.chunk_bytes)
        assert self._manifest is not None or not unknown
        return known + (self._manifest.chain_bytes if unknown and self._manifest is not None else 0)

    @property
    def progress(self) -> str:
        """What lacks, in words."""
        blobs = ", ".join(f"{blob} {version}" for blob, version in list(self._wanted)[:3])
        more = f" and {len(self._wanted) - 3} more" if len(self._wanted) > 3 else ""  # noqa: PLR2004  # as many as fit a line
        got = sum(len(fetch.got) for fetch in self._wanted.values())
        known = sum(fetch.count or 0 for fetch in self._wanted.values())
        return f"{blobs}{more} ({got} of {known} known chunks)" if known else f"{blobs}{more}"

    # ------------------------------------------------------------------------------ the aim

    def aim(self, manifest: Manifest, *, now: float) -> list[Effect]:
        """Want what leads to `manifest.version`; what is there or under way already stays."""
        if self._manifest is None or manifest.base > self._manifest.base:
            self._chain_fails = False
        self._manifest = manifest
        needed = self._needed(manifest)
        effects = self._cancel([key for key in self._wanted if key not in needed])
        for key in needed:
            if key not in self._wanted:
                self._wanted[key] = self._fetch(key, manifest)
        self._wanted = {key: self._wanted[key] for key in needed}
        if not self._wanted:
            self.since = None
            self.unreachable = False
        elif self.since is None:
            self.since = now
        return effects

    def _needed(self, manifest: Manifest) -> list[Key]:
        """Which blobs, in the order in which they are of use."""
        held = self.replica.held
        if held is not None and held >= manifest.version:
            return []
        # Whoever holds the version before needs no snapshot, not even at a rebase.
        next_one = held is not None and held == manifest.version - 1 and manifest.delta is not None
        chain = held is not None and (held >= manifest.base or (next_one and not self._chain_fails))
        first = manifest.base if not chain or held is None else held
        deltas: list[Key] = [
            ("delta", version)
            for version in range(first + 1, manifest.version + 1)
            if not self.replica.has(version)
        ]
        return deltas if chain else [("snapshot", manifest.base), *deltas]

    def _fetch(self, key: Key, manifest: Manifest) -> _Fetch:
        blob, version = key
        if blob == "snapshot":
            return _Fetch(key, manifest.snapshot.size, ref=manifest.snapshot)
        if version == manifest.version and manifest.delta is not None:
            return _Fetch(key, manifest.delta.size, ref=manifest.delta)
        return _Fetch(key, manifest.chain_bytes)

    def _cancel(self, keys: Iterable[Key]) -> list[Effect]:
        gone = {key: fetch for key in keys if (fetch := self._wanted.pop(key, None)) is not None}
        dead = [asked for asked in self._asked if asked[0] in gone]
        for asked in dead:
            del self._asked[asked]
        parts = tuple(part_file(*key) for key, fetch in gone.items() if fetch.got)
        effects: list[Effect] = [Unsubscribe(tuple(self._topic(*asked) for asked in dead))] if dead else []
        return [*effects, RemoveFiles(self.replica.run, parts)] if parts else effects

    def _topic(self, key: Key, index: int) -> str:
        blob, version = key
        return self._topics.chunk(self.replica.run, version, blob, index)

    # ------------------------------------------------------------------------------ the connection

    def connected(self) -> None:
        """Chunks can be asked for."""
        self._connected = True

    def disconnected(self) -> list[Effect]:
        """Nothing that was asked for will come; what has come stays."""
        self._connected = False
        return self._forget_asked()

    def _forget_asked(self) -> list[Effect]:
        topics = tuple(self._topic(*asked) for asked in self._asked)
        self._asked.clear()
        return [Unsubscribe(topics)] if topics else []

    # ------------------------------------------------------------------------------ chunks

    def received(self, chunk: ModelChunk, *, retained: bool) -> tuple[list[Effect], Link | None]:
        """Take a chunk whose signature is good.

        Args:
            chunk: it.
            retained: it came on its own topic, not from the coordinator's hand.

        Returns:
            What to do, and the link if this was all of a small blob: it is checked, and on disk with the first effect.

        Raises:
            RemoteError: it contradicts the manifest, another chunk, or the bounds.
        """
        key: Key = (chunk.blob, chunk.version)
        fetch = self._wanted.get(key)
        if fetch is None or fetch.finishing or chunk.index in fetch.got or chunk.run != self.replica.run:
            return [], None
        self._learn(fetch, chunk)
        effects: list[Effect] = []
        if self._asked.pop((key, chunk.index), None) is not None:
            self._broker_answers = retained
            effects.append(Unsubscribe((self._topic(key, chunk.index),)))
        assert fetch.link is not None
        fetch.got.add(chunk.index)
        if fetch.count == 1:
            if hashlib.sha256(chunk.data).digest() != fetch.link.ref.sha256:
                fetch.got.clear()
                raise RemoteError(f"{chunk.blob} {chunk.version} does not have its hash", reason="bad-hash")
            del self._wanted[key]
            return [*effects, StoreBlob(chunk.run, chunk.blob, chunk.version, chunk.data)], fetch.link
        offset = chunk.index * fetch.chunk_bytes
        effects.append(WriteBlobPart(chunk.run, chunk.blob, chunk.version, offset, chunk.data))
        if len(fetch.got) == fetch.count:
            fetch.finishing = True
            effects.append(FinishBlob(chunk.run, chunk.blob, chunk.version, fetch.link.ref))
        return effects, None

    def _learn(self, fetch: _Fetch, chunk: ModelChunk) -> None:
        """Hold what a chunk says of its blob against the manifest and the first chunk's word."""

        def wrong(what: str) -> RemoteError:
            return RemoteError(
                f"{chunk.blob} {chunk.version}, chunk {chunk.index}: {what}", reason="bad-chunk"
            )

        if fetch.ref is not None and chunk.ref != fetch.ref:
            raise wrong("its blob is not the one of the manifest")
        if chunk.ref.size > fetch.max_bytes:
            raise wrong(f"a blob of {chunk.ref.size} bytes, above the manifest's {fetch.max_bytes}")
        link = Link(
            blob=chunk.blob,
            version=chunk.version,
            ref=chunk.ref,
            chain_hash=chunk.chain_hash,
            rebase=chunk.rebase and chunk.blob == "delta",
            replica_hash=chunk.replica_hash,
        )
        if fetch.count is None:
            if chunk.index != 0:
                raise wrong("it came before the first")
            if chunk.count > 1 and not chunk.data:
                raise wrong("it is empty")
            if chunk_count(chunk.ref.size, max(1, len(chunk.data))) != chunk.count:
                raise wrong(f"{chunk.count} chunks of {len(chunk.data)} bytes do not make {chunk.ref.size}")
            self._check_newest(link)
            fetch.ref, fetch.count, fetch.chunk_bytes, fetch.link = (
                chunk.ref,
                chunk.count,
                len(chunk.data),
                link,
            )
        elif link != fetch.link or chunk.count != fetch.count:
            raise wrong("it contradicts the first one")
        size = min(fetch.chunk_bytes, chunk.ref.size - chunk.index * fetch.chunk_bytes)
        if chunk.index >= chunk.count or len(chunk.data) != size:
            raise wrong(f"it has {len(chunk.data)} bytes, not {size}")

    def _check_newest(self, link: Link) -> None:
        manifest = self._manifest
        if (
            manifest is not None
            and link.version == manifest.version
            and link.chain_hash != manifest.chain_hash
        ):
            raise RemoteError(
                f"{link.blob} {link.version} has another chain hash than its manifest", reason="bad-chain"
            )
        if (
            link.blob == "snapshot"
            and link.version == 0
            and link.chain_hash != chain_hash(NO_HASH, link.ref.sha256)
        ):
            raise RemoteError("the first snapshot does not begin the chain of hashes", reason="bad-chain")

    def finished(self, blob: BlobKind, version: int, *, ok: bool) -> Link | None:
        """The shell checked a blob of several chunks; the link if it is good, else it is fetched anew."""
        fetch = self._wanted.get((blob, version))
        if fetch is None or not fetch.finishing:
            return None
        if ok:
            del self._wanted[blob, version]
            return fetch.link
        fetch.got.clear()
        fetch.count, fetch.link, fetch.finishing = None, None, False
        return None

    # ------------------------------------------------------------------------------ time

    def next_deadline(self) -> float | None:
        """When `poll` has something to do; None while there is no connection, or nothing lacks."""
        if not self._connected or not self._wanted:
            return None
        if self._room():
            return self.not_before
        return min((asked.deadline for asked in self._asked.values()), default=None)

    def _room(self) -> bool:
        return len(self._asked) < WINDOW and next(self._to_ask(), None) is not None

    def _to_ask(self) -> Iterator[tuple[Key, int]]:
        for key, fetch in self._wanted.items():
            if not fetch.finishing:
                yield from ((key, index) for index in fetch.missing() if (key, index) not in self._asked)

    def poll(self, *, now: float) -> list[Effect]:
        """Ask for the next chunks, and again for those that did not come."""
        if not self._connected or now < self.not_before:
            return []
        effects = self._ask_again(now=now)
        topics: list[str] = []
        gets: list[Effect] = []
        for key, index in self._to_ask():
            if len(self._asked) >= WINDOW:
                break
            self._asked[key, index] = _Asked(since=now, deadline=now + ANSWER.wait_s(0, self._chance))
            topics.append(self._topic(key, index))
            if not self._broker_answers:
                gets.append(self._get(key, index))
        if topics:
            effects.append(Subscribe(tuple(topics)))
        return effects + gets

    def _ask_again(self, *, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for (key, index), asked in list(self._asked.items()):
            if asked.deadline > now or (key, index) not in self._asked:
                continue
            asked.attempts += 1
            asked.deadline = now + ANSWER.wait_s(asked.attempts, self._chance)
            if key[0] == "delta" and asked.attempts >= CHAIN_ATTEMPTS and self._snapshot_would_do():
                self._chain_fails = True
                assert self._manifest is not None
                effects += self.aim(self._manifest, now=now)
                continue
            self.unreachable = self.unreachable or asked.attempts >= REPORT_ATTEMPTS
            effects.append(self._get(key, index))
        return effects

    def _snapshot_would_do(self) -> bool:
        """Whether the delta that does not come leads to a version that there is a snapshot of."""
        held, manifest = self.replica.held, self._manifest
        return not self._chain_fails and manifest is not None and held is not None and held < manifest.base

    def _get(self, key: Key, index: int) -> Effect:
        body = Get(run=self.replica.run, version=key[1], blob=key[0], index=index)
        return Send(self._topics.up(self._device, "get"), body)

    def start_over(self, *, not_before: float) -> list[Effect]:
        """Hashes disagreed: forget what is under way, and take the snapshot, not before a time."""
        self.not_before = not_before
        return self._cancel(list(self._wanted))
