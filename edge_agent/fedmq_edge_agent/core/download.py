"""Pulling the model versions that a device lacks, a few chunks at a time.

Subscribing to a retained chunk's exact topic is a GET that the broker answers by itself. What it does not answer
within a time, since it keeps no retained messages or they are gone, the device asks the coordinator for. Every chunk
is signed and says all about its blob: size, hash, number of chunks, and the version's place in the chain of hashes.
So the first chunk of a blob is asked for alone, and the others once its word has been held against the bounds.

At most `WINDOW` chunks are asked for at once, and no more than `WINDOW_BYTES` but for a single chunk: brokers copy a
payload for each packet under way, and do not keep to the limits that a client sets; and whatever else they have to say
to this device waits behind what is under way. On a slow link that takes longer than the first time-out: as long as
bytes come, nothing is asked for again that may be among them. What has come is written down chunk by chunk, so that
neither a lost connection nor a restart costs more than the chunks that were under way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
from fedmq_edge_agent.core.fetch import Fetch, Key
from fedmq_edge_agent.core.replica import Replica
from fedmq_edge_agent.core.state import Link, Part, have_file, part_file
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_COUNTER, MAX_PACKET_BYTES
from fedmq_protocol.messages import Get, Manifest, ModelChunk
from fedmq_protocol.topics import BlobKind, Topics

WINDOW = 4
WINDOW_BYTES = 1 << 20
ANSWER = Backoff(first_s=2.0, longest_s=60.0)
CHAIN_ATTEMPTS = 3
"""After so many unanswered attempts at a delta's chunk, the snapshot is fetched instead."""
REPORT_ATTEMPTS = 4
"""After so many at any chunk, the operator is told; the attempts go on."""
STREAM_BYTES = 2_048
"""Whoever receives as much while it waits has a slow link: what it waits for may be on its way."""
DOUBT_S = 30.0
"""Before any chunk has come, what is received may be anything, and is trusted for no longer."""


@dataclass
class _Asked:
    since: float
    deadline: float
    received: int
    """Bytes on the socket when it was asked for."""
    looked: int
    """Likewise at the last deadline."""
    attempts: int = 0


class Pull:
    """Fetches what `replica` lacks of the newest announced version.

    Args:
        replica: what is there; finished blobs are joined to it by the machine.
        topics: of the federation.
        device: who asks.
        chance: for the jitter of the time-outs.
        parts: what is on disk of blobs that were being fetched.
    """

    def __init__(
        self, replica: Replica, *, topics: Topics, device: str, chance: Chance, parts: Iterable[Part] = ()
    ) -> None:
        self.replica = replica
        self._parts: dict[Key, Part] = {(part.head.link.blob, part.head.link.version): part for part in parts}
        self._topics = topics
        self._device = device
        self._chance = chance
        self._manifest: Manifest | None = None
        self._wanted: dict[Key, Fetch] = {}
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
        if not self._wanted:
            return 0
        lacking = [fetch.missing_bytes for fetch in self._wanted.values()]
        unknown = None in lacking
        assert self._manifest is not None or not unknown
        known = sum(bytes_ for bytes_ in lacking if bytes_ is not None)
        return known + (self._manifest.chain_bytes if unknown and self._manifest is not None else 0)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is on disk of blobs that are being fetched, for whoever goes on with it later."""
        fetched = [
            Part(fetch.head, frozenset(fetch.got))
            for fetch in self._wanted.values()
            if fetch.head is not None and fetch.got and not fetch.finishing
        ]
        return (*fetched, *self._parts.values())

    @property
    def progress(self) -> str:
        """What lacks, in words."""
        blobs = ", ".join(f"{blob} {version}" for blob, version in list(self._wanted)[:3])
        more = f" and {len(self._wanted) - 3} more" if len(self._wanted) > 3 else ""  # noqa: PLR2004  # as many as fit a line
        got = sum(len(fetch.got) for fetch in self._wanted.values())
        known = sum(fetch.head.count for fetch in self._wanted.values() if fetch.head is not None)
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
                effects += self._want(key, manifest)
        useless = [key for key in self._parts if key not in needed]
        for key in useless:
            del self._parts[key]
        effects += self._remove(useless)
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

    def _want(self, key: Key, manifest: Manifest) -> list[Effect]:
        """Begin a fetch, or go on with it where an earlier start left it."""
        blob, version = key
        if blob == "snapshot":
            fetch = Fetch(key, manifest.snapshot.size, pinned=manifest.snapshot)
        elif version == manifest.version and manifest.delta is not None:
            fetch = Fetch(key, manifest.delta.size, pinned=manifest.delta)
        else:
            fetch = Fetch(key, manifest.chain_bytes)
        self._wanted[key] = fetch
        part = self._parts.pop(key, None)
        if part is None:
            return []
        if not fetch.resume(part, manifest):
            return self._remove([key])
        return self._finish(fetch) if fetch.complete else []

    def _finish(self, fetch: Fetch) -> list[Effect]:
        assert fetch.ref is not None
        fetch.finishing = True
        return [FinishBlob(self.replica.run, *fetch.key, fetch.ref)]

    def _remove(self, keys: Iterable[Key]) -> list[Effect]:
        names = tuple(name for key in keys for name in (part_file(*key), have_file(*key)))
        return [RemoveFiles(self.replica.run, names)] if names else []

    def _cancel(self, keys: Iterable[Key]) -> list[Effect]:
        gone = {key: fetch for key in keys if (fetch := self._wanted.pop(key, None)) is not None}
        effects = [effect for key in gone for effect in self._forget_asked(key)]
        return effects + self._remove([key for key, fetch in gone.items() if fetch.got])

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

    def _forget_asked(self, key: Key | None = None) -> list[Effect]:
        """Of one blob, or of all."""
        gone = [asked for asked in self._asked if key in {None, asked[0]}]
        for asked in gone:
            del self._asked[asked]
        return [Unsubscribe(tuple(self._topic(*asked) for asked in gone))] if gone else []

    # ------------------------------------------------------------------------------ the disk

    def not_written(self, effect: WriteBlobPart | FinishBlob) -> None:
        """The disk did not take a chunk, or did not put a whole file in place."""
        key = (
            (effect.blob, effect.version)
            if isinstance(effect, FinishBlob)
            else (effect.head.link.blob, effect.head.link.version)
        )
        fetch = self._wanted.get(key)
        if fetch is None:
            return
        if isinstance(effect, WriteBlobPart):
            fetch.got.discard(effect.index)
        else:
            fetch.finishing = False

    def finish_whole(self) -> list[Effect]:
        """Put in place what is all there."""
        whole = [fetch for fetch in self._wanted.values() if fetch.complete and not fetch.finishing]
        return [effect for fetch in whole for effect in self._finish(fetch)]

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
        try:
            fits = fetch.learn(chunk, self._manifest)
        except RemoteError:
            self._ask_soon(key, chunk.index)
            raise
        effects: list[Effect] = []
        if self._asked.pop((key, chunk.index), None) is not None:
            self._broker_answers = retained
            effects.append(Unsubscribe((self._topic(key, chunk.index),)))
        if not fits:
            return [*effects, *self._forget_asked(key)], None
        head = fetch.head
        assert head is not None
        if head.count == 1:
            if hashlib.sha256(chunk.data).digest() != head.link.ref.sha256:
                fetch.begin_anew()
                raise RemoteError(
                    f"{chunk.blob} {chunk.version} does not have the hash that the coordinator signed",
                    reason="bad-hash",
                )
            del self._wanted[key]
            return [*effects, StoreBlob(chunk.run, chunk.blob, chunk.version, chunk.data)], head.link
        fetch.got.add(chunk.index)
        effects.append(WriteBlobPart(chunk.run, head, chunk.index, chunk.data))
        return effects + (self._finish(fetch) if fetch.complete else []), None

    def damaged(self, topic: str) -> None:
        """What came on a chunk's own topic is not the coordinator's: ask the coordinator itself, and soon."""
        for key, index in self._asked:
            if self._topic(key, index) == topic:
                self._ask_soon(key, index)

    def _ask_soon(self, key: Key, index: int) -> None:
        asked = self._asked.get((key, index))
        if asked is not None and asked.attempts == 0:
            asked.deadline, asked.looked = asked.since, MAX_COUNTER

    def finished(self, blob: BlobKind, version: int, *, ok: bool, damaged: Iterable[int] = ()) -> Link | None:
        """The shell checked a blob of several chunks; the link if it is good, else what is wrong is fetched anew."""
        fetch = self._wanted.get((blob, version))
        if fetch is None or not fetch.finishing:
            return None
        assert fetch.head is not None
        if ok:
            del self._wanted[blob, version]
            return fetch.head.link
        fetch.finishing = False
        fetch.got -= set(damaged)
        if fetch.complete:  # nothing is damaged: it was sent like that
            fetch.begin_anew()
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
        return len(self._asked) < self._window and next(self._to_ask(), None) is not None

    @property
    def _window(self) -> int:
        """How many chunks may be asked for at once: a chunk is as large as the broker lets a packet be."""
        heads = [fetch.head.chunk_bytes for fetch in self._wanted.values() if fetch.head is not None]
        return max(1, min(WINDOW, WINDOW_BYTES // max(heads, default=1)))

    def _to_ask(self) -> Iterator[tuple[Key, int]]:
        for key, fetch in self._wanted.items():
            if not fetch.finishing:
                yield from ((key, index) for index in fetch.missing() if (key, index) not in self._asked)

    def poll(self, *, now: float, received: int) -> list[Effect]:
        """Ask for the next chunks, and again for those that did not come.

        Args:
            now: the time.
            received: bytes received on the socket so far, of whatever.
        """
        if not self._wanted or not self._connected or now < self.not_before:
            return []
        effects = self._ask_again(now=now, received=received)
        topics: list[str] = []
        gets: list[Effect] = []
        for key, index in self._to_ask():
            if len(self._asked) >= self._window:
                break
            self._asked[key, index] = _Asked(now, now + ANSWER.wait_s(0, self._chance), received, received)
            topics.append(self._topic(key, index))
            if not self._broker_answers:
                gets.append(self._get(key, index))
        if topics:
            effects.append(Subscribe(tuple(topics)))
        return effects + gets

    def _ask_again(self, *, now: float, received: int) -> list[Effect]:
        effects: list[Effect] = []
        for (key, index), asked in list(self._asked.items()):
            if asked.deadline > now or (key, index) not in self._asked:
                continue
            if self._is_coming(asked, received, now=now):
                asked.deadline, asked.looked = now + ANSWER.wait_s(0, self._chance), received
                continue
            asked.looked = received
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

    def _is_coming(self, asked: _Asked, received: int, *, now: float) -> bool:
        """Whether bytes keep coming, and not so many yet that the chunk would have been among them."""
        heads = [fetch.head.chunk_bytes for fetch in self._wanted.values() if fetch.head is not None]
        if not heads and now - asked.since >= DOUBT_S:
            return False
        due = 2 * (self._window * max(heads) if heads else len(self._asked) * MAX_PACKET_BYTES)
        return received - asked.looked >= STREAM_BYTES and received - asked.received < due

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
