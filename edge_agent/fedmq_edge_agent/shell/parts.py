"""Model files on their way: chunks at their places in a part file, and beside it a list of those that are there.

    base-7.bin.part        the file, with holes
    base-7.bin.part.have   length of the head in 4 bytes | head | a record a chunk: its index in 4 bytes, its SHA-256

Records are appended, and nothing is flushed: a download is no reason to wear a memory card. So at a start nothing in
the list is believed before the chunk that it names has been held against its hash.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedmq_edge_agent.core.state import Part, PartHead, blob_file, dump_head, have_file, load_head, part_file
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import BlobRef
from fedmq_protocol.topics import BlobKind

_LENGTH: Final = struct.Struct(">I")
_RECORD: Final = struct.Struct(">I32s")
_PIECE_BYTES: Final = 1 << 17
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})


def write_chunk(folder: Path, head: PartHead, index: int, data: bytes) -> None:
    """Put a chunk in its place, then into the list; whatever is there of another blob of this name goes.

    Raises:
        OSError: the disk does not take it.
    """
    part = folder / part_file(head.link.blob, head.link.version)
    have = folder / have_file(head.link.blob, head.link.version)
    folder.mkdir(exist_ok=True)
    packed = dump_head(head)
    begun = _LENGTH.pack(len(packed)) + packed
    with _open(part) as file, _open(have) as noted:
        if os.pread(noted, len(begun), 0) != begun:
            os.ftruncate(file, 0)
            os.ftruncate(noted, 0)
            _write(noted, begun, 0)
        _write(file, data, index * head.chunk_bytes)
        end = os.fstat(noted).st_size
        end -= (end - len(begun)) % _RECORD.size  # a torn record is written over
        _write(noted, _RECORD.pack(index, hashlib.sha256(data).digest()), end)


def finish(folder: Path, blob: BlobKind, version: int, ref: BlobRef) -> tuple[bool, tuple[int, ...]]:
    """Put a fetched file in place if it is what was promised; the list of its chunks stays for the caller to remove.

    It takes a while, and meanwhile the file may be removed, with its run or since something else is wanted.

    Returns:
        Whether it is, and otherwise which chunks the disk did not keep. When it kept them all, they are removed.

    Raises:
        OSError: the file cannot be put in place.
    """
    part, have = folder / part_file(blob, version), folder / have_file(blob, version)
    if matches(part, ref):
        with suppress(FileNotFoundError):
            part.replace(folder / blob_file(blob, version))
            return True, ()
    found = read(have, part)
    if found is None:
        return False, (0,)  # with it a new list begins, and tells that the others lack
    damaged = tuple(sorted(set(range(found.head.count)) - found.have))
    if not damaged:
        part.unlink(missing_ok=True)
        have.unlink(missing_ok=True)
    return False, damaged


def find(folder: Path) -> list[Part]:
    """What was being fetched into a folder; of a file that was put in place and never noted, all."""
    found: list[Part] = []
    for have in sorted(folder.glob("*.part.have")):
        part = have.with_suffix("")
        whole = part.with_suffix("")
        if not part.exists() and whole.exists():
            with suppress(OSError):  # a disk that is read-only: what is not there is fetched again
                whole.replace(part)
        there = read(have, part)
        if there is not None and there.have:
            found.append(there)
    return found


def read(have: Path, part: Path) -> Part | None:
    """A list, with the chunks that are really there; None: it cannot be read, or is of another file."""
    try:
        noted = have.read_bytes()
        start = _LENGTH.size + _LENGTH.unpack_from(noted)[0]
        head = load_head(noted[_LENGTH.size : start])
        if part.name != part_file(head.link.blob, head.link.version):
            return None
        with part.open("rb") as file:
            return Part(head, frozenset(_kept(head, file.fileno(), noted[start:])))
    except (OSError, StoreError, struct.error):
        return None


def _kept(head: PartHead, file: int, records: bytes) -> Iterator[int]:
    whole = len(records) - len(records) % _RECORD.size
    for index, digest in dict(_RECORD.iter_unpack(records[:whole])).items():
        if index < head.count:
            data = os.pread(file, head.size(index), index * head.chunk_bytes)
            if len(data) == head.size(index) and hashlib.sha256(data).digest() == digest:
                yield index


def is_passing(error: OSError) -> bool:
    """Whether it says nothing of the disk: a moment later it may be over."""
    return error.errno in _PASSING


def matches(path: Path, ref: BlobRef) -> bool:
    """Whether a file is there, can be read, and is the one that `ref` names.

    Raises:
        OSError: that cannot be told now, for want of descriptors or memory.
    """
    digest = hashlib.sha256()
    try:
        if path.stat().st_size != ref.size:
            return False
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        if is_passing(error):
            raise
        return False
    return digest.digest() == ref.sha256


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """A descriptor of a file to read and write, made if it is not there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
