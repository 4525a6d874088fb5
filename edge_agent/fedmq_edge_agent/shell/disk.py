"""The agent's folder: what is durable is written to another name, flushed, renamed, and the folder flushed.

key               the device's private key
coordinator.pub   the coordinator's pinned key, in hex; remove it to believe another coordinator
state             see core/state.py
spare             room that is given up when the disk is full, so that the state can still be written
lock              held while an agent uses the folder
runs/<run>/       model.idx, base-<v>.bin, delta-<v>.bin, update-<n>.bin, residual-<n>.bin; parts.py has the parts

A file that is not durable is a cache: a power cut may take it, or leave anything in its place, so it is held against a
hash before it is used, and fetched again where that does not fit. `docs/device-state.md` has the whole table.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
from pathlib import Path
from typing import Final

from fedmq_edge_agent.core.state import (
    INDEX_FILE,
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
from fedmq_edge_agent.disk_faults import ROOMY
from fedmq_edge_agent.shell import parts
from fedmq_edge_agent.shell.writing import (
    DiskError,
    make_folders,
    replace,
    take_room,
    writing,
)
from fedmq_edge_agent.trainer.durable import flush_folder
from fedmq_protocol.errors import RemoteError, StoreError
from fedmq_protocol.messages import BlobRef
from fedmq_protocol.signing import PUBLIC_KEY_BYTES, SigningKey, load_or_create_key
from fedmq_protocol.topics import BlobKind

SPARE_BYTES: Final = 1 << 16
"""Many times what the state takes."""
_TRIAL_BYTES: Final = 1 << 12
_KEY_HEX: Final = 64


class Disk:
    """The folder of one agent, which holds it for itself.

    Args:
        folder: made if it is not there.

    Raises:
        StoreError: it cannot be used, or another agent does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs = folder / "runs"
        self._lock: int | None = None
        self._known: set[str] = set()
        """The runs whose folders are durable."""
        try:
            make_folders(self._runs)
            descriptor = _open_lock(folder / "lock")
        except OSError as error:
            raise StoreError(f"cannot use the state folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                f"another agent uses {folder}; give each device a state_dir of its own, or end the other one"
            ) from error
        self._lock = descriptor
        with contextlib.suppress(OSError):  # it is said when it matters
            self._tidy()

    def _tidy(self) -> None:
        for left in self.folder.glob("*.tmp"):  # of a write that a power cut ended
            left.unlink(missing_ok=True)
        self._keep_spare()

    def _keep_spare(self) -> None:
        spare = self.folder / "spare"
        if not spare.exists() or spare.stat().st_size < SPARE_BYTES:
            with spare.open("wb") as file:
                take_room(file.fileno(), SPARE_BYTES)
                file.write(bytes(SPARE_BYTES))  # where room cannot be taken otherwise

    def close(self) -> None:
        """Let another agent have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------------------------ what a start begins with

    def key(self, state: AgentState) -> SigningKey:
        """The device's key; made at the first start, and never silently another one than `state` was made with.

        Raises:
            StoreError: its file cannot be used, is gone, or holds another key.
        """
        path = self.folder / "key"
        mend = f"put the right one back; or, to begin as a new device, remove {self.folder} as a whole"
        known = state.identity is not None or state.session > 0
        if known and not path.exists():
            raise StoreError(f"{path} is gone, and by its key this device is known: {mend}")
        if path.exists() and _is_torn(path):
            if known:
                raise StoreError(f"{path} is damaged, and by its key this device is known: {mend}")
            with writing(path):
                path.replace(path.with_name("key.damaged"))  # nobody has ever heard of it
        key = load_or_create_key(path)
        if state.identity is not None and key.public_key != state.identity:
            raise StoreError(f"{path} holds another key than the one by which this device is known: {mend}")
        return key

    def pinned_key(self) -> bytes | None:
        """The coordinator's key that was pinned.

        Raises:
            StoreError: the file holds something else.
        """
        path = self.folder / "coordinator.pub"
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} holds no key; remove it to believe the next coordinator: {error}"
            ) from error
        if len(key) != PUBLIC_KEY_BYTES:
            raise StoreError(f"{path} holds no key; remove it to believe the next coordinator")
        return key

    def load_state(self) -> AgentState:
        """What the last commit left; a new state at the first start.

        Raises:
            StoreError: it cannot be read, or is not whole.
        """
        path = self.folder / "state"
        try:
            return load_state(path.read_bytes())
        except FileNotFoundError:
            return AgentState()
        except (OSError, StoreError) as error:
            raise StoreError(
                f"cannot use {path}: {error}; remove it to begin anew, which loses the updates that have no receipt"
            ) from error

    def load_models(self, state: AgentState) -> tuple[dict[str, ModelIndex], dict[str, tuple[Part, ...]]]:
        """The model files of the runs in `state`: whole chains, and what was being fetched.

        Whatever nothing refers to is removed.
        """
        indexes: dict[str, ModelIndex] = {}
        fetched: dict[str, tuple[Part, ...]] = {}
        for run_dir in self._runs.iterdir():
            run = state.runs.get(run_dir.name)
            if run is None:
                shutil.rmtree(run_dir, ignore_errors=True)
                continue
            index = ModelIndex()
            with contextlib.suppress(OSError, StoreError):  # a cache: what it does not tell is fetched again
                index = _unbroken(load_index((run_dir / INDEX_FILE).read_bytes()), run_dir)
            for link in index.links:  # of what is in the chain, nothing is being fetched
                self.remove(run_dir.name, (have_file(link.blob, link.version),))
            found = parts.find(run_dir)
            indexes[run_dir.name], fetched[run_dir.name] = index, tuple(found)
            links = [part.head.link for part in found]
            kept = {INDEX_FILE, run.residual_file}
            kept |= {link.file for link in index.links} | {pending.file for pending in run.pending}
            kept |= {name(link.blob, link.version) for link in links for name in (part_file, have_file)}
            for file in run_dir.iterdir():
                if file.name not in kept:
                    with contextlib.suppress(OSError):  # rubbish is no reason to stop
                        file.unlink(missing_ok=True)
        return indexes, fetched

    # ------------------------------------------------------------------------------ writing

    def save_state(self, state: AgentState) -> None:
        """Durable when it returns.

        Raises:
            DiskError: the disk does not take it.
        """
        for run in state.runs:
            self._make_run(run)
        self._replace_durably(self.folder / "state", dump_state(state))

    def pin(self, public_key: bytes) -> None:
        """Durable when it returns.

        Raises:
            DiskError: the disk does not take it.
        """
        self._replace_durably(self.folder / "coordinator.pub", public_key.hex().encode() + b"\n")

    def save_index(self, run: str, index: ModelIndex) -> None:
        """Write which model files there are.

        Raises:
            DiskError: the disk does not take it.
        """
        replace(self._path(run, INDEX_FILE), dump_index(index))

    def store_blob(self, run: str, blob: BlobKind, version: int, data: bytes) -> None:
        """Write a whole model file.

        Raises:
            DiskError: the disk does not take it.
        """
        replace(self._path(run, blob_file(blob, version)), data)

    def write_chunk(self, run: str, head: PartHead, index: int, data: bytes) -> None:
        """Write a chunk of a model file that is being fetched.

        Raises:
            DiskError: the disk does not take it.
        """
        with writing(self._path(run, part_file(head.link.blob, head.link.version))):
            parts.write_chunk(self.run_dir(run), head, index, data)

    def finish_blob(
        self, run: str, blob: BlobKind, version: int, ref: BlobRef
    ) -> tuple[bool, tuple[int, ...]]:
        """Put a fetched file in place if it is what was promised; otherwise say which chunks the disk did not keep.

        Raises:
            DiskError: the file cannot be put in place.
        """
        with writing(self._path(run, blob_file(blob, version))):
            return parts.finish(self.run_dir(run), blob, version, ref)

    def try_room(self, room_bytes: int) -> None:
        """Find out whether the disk takes files of so many bytes together. Nothing is left of them.

        Raises:
            DiskError: it does not.
        """
        trial = self.folder / "trial.tmp"
        with writing(trial):
            try:
                self._keep_spare()
                with trial.open("wb") as file:
                    file.write(bytes(_TRIAL_BYTES))
                    file.flush()
                    take_room(file.fileno(), room_bytes)
                    os.fsync(file.fileno())
            finally:
                trial.unlink(missing_ok=True)

    def _make_run(self, run: str) -> None:
        """A run's folder, durable: what a trainer puts there must not go with its name."""
        path = self.run_dir(run)
        with writing(path):
            if run not in self._known or not path.exists():
                path.mkdir(exist_ok=True)
                flush_folder(self._runs)
                self._known.add(run)

    def _replace_durably(self, path: Path, data: bytes) -> None:
        """Write a small file, durable; where the disk is full, in the room that was spared for it."""
        try:
            replace(path, data, durable=True)
        except DiskError as error:
            spare = self.folder / "spare"
            if error.fault not in ROOMY or not spare.exists():
                raise
            with writing(spare):
                spare.unlink()
            replace(path, data, durable=True)

    def remove(self, run: str, names: tuple[str, ...]) -> None:
        """Remove files of a run."""
        for name in names:
            with contextlib.suppress(OSError):  # rubbish is no reason to stop
                self._path(run, name).unlink()

    def remove_run(self, run: str) -> None:
        """Remove all of a run."""
        self._known.discard(run)
        shutil.rmtree(self._runs / run, ignore_errors=True)

    # ------------------------------------------------------------------------------ reading

    def run_dir(self, run: str) -> Path:
        """The folder of a run."""
        return (self._runs / run).absolute()

    def _path(self, run: str, name: str) -> Path:
        assert "/" not in name
        return self.run_dir(run) / name

    def file(self, run: str, name: str) -> str:
        """The absolute path of a file of a run."""
        return str(self._path(run, name))

    def check(self, run: str, name: str, ref: BlobRef) -> None:
        """Check a model file before it is used: files rot, and memory cards lie.

        Raises:
            RemoteError: it is not the one that `ref` names.
        """
        try:
            holds = self.holds(run, name, ref)
        except StoreError:
            holds = False
        if not holds:
            raise RemoteError(f"the file {name} is not what was stored", reason="bad-hash")

    def holds(self, run: str, name: str, ref: BlobRef) -> bool:
        """Whether a file is there, can be read, and is the one that `ref` names.

        Raises:
            StoreError: that cannot be told now.
        """
        try:
            return parts.matches(self._path(run, name), ref)
        except OSError as error:
            raise StoreError(f"cannot read {name} of {run} just now: {error.strerror}") from error

    def read(self, run: str, name: str, offset: int = 0, size: int | None = None) -> bytes | None:
        """Bytes of a file; None if it is gone, or the disk does not give it.

        Raises:
            StoreError: it cannot be read now, for want of descriptors or memory.
        """
        try:
            with self._path(run, name).open("rb") as file:
                file.seek(offset)
                return file.read(-1 if size is None else size)
        except OSError as error:
            if parts.is_passing(error):
                raise StoreError(f"cannot read {name} of {run} just now: {error.strerror}") from error
            return None


def _open_lock(path: Path) -> int:
    """A descriptor of the lock's file, made if it is not there. Nothing is open for writing: disks turn read-only."""
    return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_torn(path: Path) -> bool:
    try:
        return len(bytes.fromhex(path.read_text(encoding="ascii").strip())) != _KEY_HEX // 2
    except ValueError:
        return True
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def _unbroken(index: ModelIndex, folder: Path) -> ModelIndex:
    """As much of a chain as has its files; what they hold is looked at before they are used."""

    def is_there(link: Link) -> bool:
        path = folder / link.file
        return path.exists() and path.stat().st_size == link.ref.size

    return ModelIndex(links=tuple(itertools.takewhile(is_there, index.links)))
