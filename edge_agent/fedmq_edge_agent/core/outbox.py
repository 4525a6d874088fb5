"""Updates between their commit and their receipt: sent, and sent again, until the coordinator's final word.

    waiting --send--> update under way --receipt--> gone
                      offer under way --credit--> chunks under way --receipt--> gone

An update that fits into a packet goes whole. A larger one is offered; each credit says which chunks are there and how
many may be under way. Whatever is under way and stays without an answer begins anew after a time: duplicates do no
harm, since the coordinator counts an update once. A PUBACK proves nothing, so nothing here waits for one.

In a large fleet devices send in turns, and the coordinator says whose turn it is. Nothing is begun out of turn, unless
no word of turns has come for so long that the coordinator may have forgotten us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgpack

from fedmq_edge_agent.core.backoff import Backoff, Chance
from fedmq_edge_agent.core.effects import Effect, Send, SendUpdate, SendUploadChunk
from fedmq_edge_agent.core.state import PendingUpdate
from fedmq_protocol.chunks import chunk_count
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_CHUNKS, PACKET_OVERHEAD_BYTES
from fedmq_protocol.messages import Credit, Offer, UpdateHeader, to_plain
from fedmq_protocol.topics import Topics

RESEND = Backoff(first_s=5.0, longest_s=60.0)
MIN_CHUNK_BYTES = 1_024
Turn = Literal["free", "mine", "waits"]
"""Whether updates may be begun: always; one at a time; not now."""
_SELDOM = 64  # an attempt so late that the wait is the longest
_PLAIN_HEADER_BYTES = (
    1_024  # what PACKET_OVERHEAD_BYTES has room for besides the envelope and the MQTT header
)


@dataclass
class _Entry:
    pending: PendingUpdate
    since: float
    next_send_at: float
    attempts: int = 0
    chunk_bytes: int | None = None
    """Of the offer under way; None: nothing is offered on this connection."""
    sent: set[int] = field(default_factory=set)
    """Chunks sent since the offer."""
    under_way: bool = False
    """Sent or offered on this connection, and not known to be lost."""
    restoring: bool = False
    """Refused; its mass goes back into the residual, then it goes."""
    durable: bool = True
    """Committed; otherwise nobody may hear of it."""
    from_before: bool = False
    """It was there when the agent started."""

    @property
    def to_be_sent(self) -> bool:
        return self.durable and not self.restoring

    @property
    def cost(self) -> int:
        """About how many bytes it takes."""
        return self.pending.header.payload.size + PACKET_OVERHEAD_BYTES


class Outbox:
    """All updates without a receipt, of every run.

    Args:
        topics: of the federation.
        device: who sends.
        chance: for the jitter of the resends.
    """

    def __init__(self, *, topics: Topics, device: str, chance: Chance) -> None:
        self._topics = topics
        self._device = device
        self._chance = chance
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._max_packet_bytes: int | None = None
        self._coordinator_online = True
        self._turn: Turn = "free"
        self._told_of_turns = False
        """In the coordinator's present epoch."""
        self._patient_until = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, update: tuple[str, int]) -> bool:
        return update in self._entries

    def get(self, run: str, counter: int) -> PendingUpdate | None:
        """The update, if it is still without a receipt."""
        entry = self._entries.get((run, counter))
        return None if entry is None else entry.pending

    def counters(self, run: str) -> list[int]:
        """Which updates of `run` wait."""
        return [counter for name, counter in self._entries if name == run]

    @property
    def oldest_since(self) -> float | None:
        """When the longest wait began."""
        return min((entry.since for entry in self._entries.values()), default=None)

    # ------------------------------------------------------------------------------ what happens to it

    def add(self, pending: PendingUpdate, *, from_before: bool = False, now: float) -> None:
        """Take an update; `poll` sends it once it is committed, as one `from_before` the start is."""
        self._entries[pending.header.run, pending.header.counter] = _Entry(
            pending, since=now, next_send_at=now, durable=from_before, from_before=from_before
        )

    def is_from_before(self, run: str, counter: int) -> bool:
        """Whether an update was in the outbox when the agent started."""
        entry = self._entries.get((run, counter))
        return entry is not None and entry.from_before

    def commit(self, is_durable: Callable[[str, int], bool]) -> None:
        """A commit is about to be written, or was refused: what it has may be sent, and nothing else."""
        for update, entry in self._entries.items():
            entry.durable = is_durable(*update)
            if not entry.durable:
                entry.attempts, entry.under_way, entry.chunk_bytes = 0, False, None
                entry.next_send_at = entry.since

    @property
    def num_unwritten(self) -> int:
        """How many updates wait for a commit."""
        return sum(not entry.durable for entry in self._entries.values())

    def remove(self, run: str, counter: int) -> None:
        """Forget an update: it has its receipt, or its run is over."""
        self._entries.pop((run, counter), None)

    def hold_for_restore(self, run: str, counter: int) -> None:
        """Send it no more: it was refused, and only waits until its mass is back in the residual."""
        entry = self._entries[run, counter]
        entry.restoring, entry.under_way = True, False

    def is_to_be_sent(self, run: str, counter: int) -> bool:
        """Whether an update waits for its receipt, and for nothing else."""
        entry = self._entries.get((run, counter))
        return entry is not None and entry.to_be_sent

    def next_restore(self) -> PendingUpdate | None:
        """The oldest update whose mass is to go back."""
        return next((entry.pending for entry in self._entries.values() if entry.restoring), None)

    def connected(self, max_packet_bytes: int, *, now: float) -> None:
        """A new connection: what was under way may be lost."""
        self._max_packet_bytes = max_packet_bytes
        self.send_again(now=now)

    def disconnected(self) -> None:
        """Nothing can be sent."""
        self._max_packet_bytes = None

    def send_again(self, *, now: float) -> None:
        """Send everything now: the coordinator is new, or the connection is."""
        for entry in self._entries.values():
            entry.attempts, entry.next_send_at, entry.chunk_bytes = 0, now, None
            entry.under_way = False

    def turn(self, *, mine: bool, everybody: bool, now: float) -> None:
        """The coordinator says whose turn it is to send."""
        self._told_of_turns = True
        self._turn = "free" if everybody else "mine" if mine else "waits"
        self._be_patient(now=now)

    def new_epoch(self, *, now: float) -> None:
        """The coordinator is new, and knows less than we think; if it gives turns, it does so before all else."""
        self.send_again(now=now)
        if self._told_of_turns:
            self._turn, self._told_of_turns = "waits", False
            self._be_patient(now=now)

    def announced(self) -> None:
        """An announcement came: if it was not behind a turn, there are none."""
        if not self._told_of_turns:
            self._turn = "free"

    def _be_patient(self, *, now: float) -> None:
        self._patient_until = now + RESEND.wait_s(_SELDOM, self._chance)

    @property
    def waits_for_turn(self) -> bool:
        """Whether nothing is begun until the coordinator says so."""
        return self._turn == "waits"

    def coordinator(self, *, online: bool, now: float) -> None:
        """The coordinator came or went. While it is away, we try seldom."""
        if online and not self._coordinator_online:
            self.send_again(now=now)
        self._coordinator_online = online

    def credit(self, credit: Credit, *, now: float) -> list[Effect]:
        """Send the chunks that the coordinator lacks, as many as it has room for.

        Raises:
            RemoteError: the bitmap has another size than the offer had chunks.
        """
        entry = self._entries.get((credit.run, credit.counter))
        if entry is None or entry.chunk_bytes is None or self._max_packet_bytes is None or entry.restoring:
            return []  # of an earlier connection, or settled since
        entry.attempts = 0  # somebody answers: the next silence is a first one
        entry.next_send_at = now + RESEND.wait_s(entry.attempts, self._chance)
        if credit.window == 0:  # no room for it yet: of its chunks there is nothing to say
            return []
        header = entry.pending.header
        count = chunk_count(header.payload.size, entry.chunk_bytes)
        if len(credit.have) != -(-count // 8):
            raise RemoteError(
                f"a credit with {len(credit.have)} bytes of bitmap for {count} chunks", reason="bad-credit"
            )
        have = {index for index in range(count) if credit.have[index // 8] >> (index % 8) & 1}
        under_way = len(entry.sent - have)
        missing = [index for index in range(count) if index not in have and index not in entry.sent]
        chosen = missing[: max(0, credit.window - under_way)]
        entry.sent.update(chosen)
        size = header.payload.size
        return [
            SendUploadChunk(
                run=header.run,
                counter=header.counter,
                index=index,
                file=entry.pending.file,
                offset=index * entry.chunk_bytes,
                size=min(entry.chunk_bytes, size - index * entry.chunk_bytes),
                payload=header.payload,
            )
            for index in chosen
        ]

    # ------------------------------------------------------------------------------ time

    def next_deadline(self) -> float | None:
        """When `poll` has something to send next."""
        if self._max_packet_bytes is None or not self._entries:
            return None
        due = min((entry.next_send_at for entry in self._entries.values() if entry.to_be_sent), default=None)
        if due is None or self._turn == "free":
            return due
        # One at a time: not before every one that is under way is due again.
        due = max([due, *(entry.next_send_at for entry in self._entries.values() if entry.under_way)])
        return max(due, self._patient_until) if self._turn == "waits" else due

    def poll(self, *, fits: Callable[[int, str], bool], left: int | None = None, now: float) -> list[Effect]:
        """Send what is due; what does not fit beside what is under way waits until that is settled.

        Args:
            fits: whether something that takes so many bytes, and is called so, may be begun.
            left: bytes that may still be planned with today; None: as many as it takes.
            now: the time.
        """
        if self._max_packet_bytes is None or not self._entries:
            return []
        if self._turn == "waits" and now < self._patient_until:
            return []
        sent: list[Effect] = []
        due = [entry for entry in self._entries.values() if entry.next_send_at <= now and entry.to_be_sent]
        begun = sum(
            entry.cost for entry in self._entries.values() if entry.under_way and entry.next_send_at > now
        )
        if self._turn != "free":
            due = [] if begun else sorted(due, key=lambda entry: entry.next_send_at)[:1]
        for entry in due:
            if begun and left is not None and begun + entry.cost > left:
                entry.under_way, entry.next_send_at = False, now + RESEND.first_s
            elif fits(entry.cost, "the next update"):
                begun += entry.cost
                sent.append(self._send(entry, self._max_packet_bytes, now=now))
            else:
                break
        return sent

    def _send(self, entry: _Entry, max_packet_bytes: int, *, now: float) -> Effect:
        attempt = entry.attempts if self._coordinator_online else _SELDOM
        entry.next_send_at = now + RESEND.wait_s(attempt, self._chance)
        entry.attempts += 1
        entry.under_way = True
        entry.sent.clear()
        header = entry.pending.header
        room = max_packet_bytes - PACKET_OVERHEAD_BYTES
        if header.payload.size + max(0, _header_bytes(header) - _PLAIN_HEADER_BYTES) <= room:
            return SendUpdate(header, entry.pending.file)
        least = -(-header.payload.size // MAX_CHUNKS)
        entry.chunk_bytes = max(room, MIN_CHUNK_BYTES, least)
        return Send(
            self._topics.up(self._device, "offer"), Offer(header=header, chunk_bytes=entry.chunk_bytes)
        )


def _header_bytes(header: UpdateHeader) -> int:
    return len(msgpack.packb(to_plain(header)))
