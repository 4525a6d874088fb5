"""Updates that arrive in chunks: admitted by credit, kept within a stated number of bytes, resumed by a have-list."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fedmq_protocol.chunks import Assembly
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_STORED_UPLOADS
from fedmq_protocol.messages import Credit, Offer, UpdateHeader, UploadChunk

WINDOW = 4
"""Chunks of one upload under way at once."""
MAX_OPEN = 62
"""Uploads of all devices: with as many windows, a quarter of the 1,000 messages that Mosquitto queues for a client. It
drops what comes beyond them although it has acknowledged it."""
IDLE_S = 120.0
"""An upload that stood still for so long makes room for another one; its device offers it again."""
STALLED_S = 5 * IDLE_S
"""Likewise one of which no new chunk came for so long, however often it is offered: the slowest link is quicker."""


@dataclass
class Upload:
    """One update on its way."""

    header: UpdateHeader
    assembly: Assembly
    touched_at: float
    """When it was last offered, or grew."""
    grown_at: float
    """When its last new chunk came, or it was opened."""

    def may_go(self, now: float) -> bool:
        """Whether it may have to make room for another one."""
        return now - self.touched_at >= IDLE_S or now - self.grown_at >= STALLED_S

    def credit(self) -> Credit:
        """What of it is still wanted."""
        return Credit(
            run=self.header.run, counter=self.header.counter, have=self.assembly.have(), window=WINDOW
        )


class Uploads:
    """All uploads that are open, the one that was touched last at the end."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, str, int], Upload] = OrderedDict()

    def offer(self, device: str, offer: Offer, *, max_bytes: int, budget_bytes: int, now: float) -> Credit:
        """Open an upload, or find it again, and say what of it is still wanted; a window of 0 says: not now.

        Args:
            device: who offers.
            offer: what.
            max_bytes: a larger one cannot be right.
            budget_bytes: how much all uploads together may hold; a larger one is let in when there is no other.
            now: seconds since the epoch.

        Raises:
            RemoteError: larger than any update of this model can be, or in too many chunks.
        """
        header = offer.header
        size = header.payload.size
        if size > max_bytes:
            msg = f"an update of {size} bytes; at most {max_bytes} can be right for this model"
            raise RemoteError(msg, reason="too-large")
        key = (header.run, device, header.counter)
        upload = self._open.get(key)
        if (
            upload is None
            or upload.header.payload != header.payload
            or upload.assembly.chunk_bytes != offer.chunk_bytes
        ):
            self._open.pop(key, None)
            if not self._make_room(device, budget_bytes - size, now=now):
                return Credit(run=header.run, counter=header.counter, have=b"", window=0)
            upload = self._open[key] = Upload(header, Assembly(header.payload, offer.chunk_bytes), now, now)
        upload.header, upload.touched_at = header, now
        self._open.move_to_end(key)
        return upload.credit()

    def _make_room(self, device: str, others_bytes: int, *, now: float) -> bool:
        """Whether the others hold no more than that, and are few enough, or could be made to."""
        mine = [key for key in self._open if key[1] == device]
        if len(mine) >= MAX_STORED_UPLOADS:
            del self._open[mine[0]]
        while self._open and (self.held_bytes > others_bytes or len(self._open) >= MAX_OPEN):
            gone = next((key for key, upload in self._open.items() if upload.may_go(now)), None)
            if gone is None:
                return False
            del self._open[gone]
        return True

    def chunk(self, device: str, chunk: UploadChunk, *, now: float) -> Upload | None:
        """Take a chunk that is new; return its upload, whole or not, or None if there is nothing to answer.

        Raises:
            RemoteError: the chunk cannot be one of its upload's.
        """
        key = (chunk.run, device, chunk.counter)
        upload = self._open.get(key)
        if upload is None or not upload.assembly.add(chunk.index, chunk.data):
            return None
        upload.touched_at = upload.grown_at = now
        self._open.move_to_end(key)
        return upload

    def close(self, device: str, header: UpdateHeader) -> None:
        """Forget an upload."""
        self._open.pop((header.run, device, header.counter), None)

    def forget(self, *, but_of: str | None) -> None:
        """Forget the uploads of all runs but one."""
        for key in [key for key in self._open if key[0] != but_of]:
            del self._open[key]

    @property
    def held_bytes(self) -> int:
        """What the open uploads may hold, counted in full from their offers on."""
        return sum(upload.header.payload.size for upload in self._open.values())
