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
MIN_CHUNK_BYTES = 16_384


@dataclass
class Upload:
    """One update on its way."""

    header: UpdateHeader
    assembly: Assembly


class Uploads:
    """All uploads that are open.

    Args:
        budget_bytes: how much all of them together may hold; an offer beyond it waits.
        min_chunk_bytes: smaller chunks are refused, unless the whole update is smaller.
    """

    def __init__(self, budget_bytes: int, *, min_chunk_bytes: int = MIN_CHUNK_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._min_chunk_bytes = min_chunk_bytes
        self._open: OrderedDict[tuple[str, int], Upload] = OrderedDict()

    def offer(self, device: str, offer: Offer, *, max_bytes: int) -> Credit:
        """Open an upload, or find it again, and say what of it is still wanted.

        Raises:
            RemoteError: larger than any update of this model can be, or in chunks that are too small.
        """
        header = offer.header
        size = header.payload.size
        if size > max_bytes:
            msg = f"an update of {size} bytes; at most {max_bytes} can be right for this model"
            raise RemoteError(msg, reason="too-large")
        if offer.chunk_bytes < min(self._min_chunk_bytes, max(1, size)):
            msg = f"chunks of {offer.chunk_bytes} bytes; at least {self._min_chunk_bytes}"
            raise RemoteError(msg, reason="bad-chunk")
        key = (device, header.counter)
        upload = self._open.get(key)
        if (
            upload is None
            or upload.header.payload != header.payload
            or upload.assembly.chunk_bytes != offer.chunk_bytes
        ):
            self._open.pop(key, None)
            mine = [other for other in self._open if other[0] == device]
            if len(mine) >= MAX_STORED_UPLOADS:
                del self._open[mine[0]]
            if self._open and size + self.held_bytes > self._budget_bytes:
                return Credit(run=header.run, counter=header.counter, have=b"", window=0)
            upload = self._open[key] = Upload(header, Assembly(header.payload, offer.chunk_bytes))
        upload.header = header
        return Credit(run=header.run, counter=header.counter, have=upload.assembly.have(), window=WINDOW)

    def chunk(self, device: str, chunk: UploadChunk) -> Upload | None:
        """Take a chunk; return the upload when it is whole.

        Raises:
            RemoteError: the chunk cannot be one of its upload's.
        """
        upload = self._open.get((device, chunk.counter))
        if upload is None or upload.header.run != chunk.run:
            return None
        upload.assembly.add(chunk.index, chunk.data)
        return upload if upload.assembly.complete else None

    def close(self, device: str, counter: int) -> None:
        """Forget an upload."""
        self._open.pop((device, counter), None)

    def clear(self) -> None:
        self._open.clear()

    @property
    def held_bytes(self) -> int:
        """What the open uploads may hold, counted in full from their offers on."""
        return sum(upload.header.payload.size for upload in self._open.values())
