"""The agent's folder: what is durable is written to another name, flushed, and renamed.

key               the device's private key
coordinator.pub   the coordinator's pinned key, in hex; remove it to believe another coordinator
state             see core/state.py
lock              held while an agent uses the folder
runs/<run>/       model.idx, base-<v>.bin, delta-<v>.bin, update-<n>.bin, residual-<n>.bin; parts.py has the parts
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

from fedmq_edge_agent.core.state import (
    AgentState,
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
from fedmq_edge_agent.shell import parts
from fedmq_protocol.errors import RemoteError, StoreError
from fedmq_protocol.messages import BlobRef
from fedmq_protocol.signing import PUBLIC_KEY_BYTES, SigningKey, load_or_create_key
from fedmq_protocol.topics import BlobKind

_INDEX: Final = "model.idx"


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
        try:
            self._runs.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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

    def close(self) -> None:
        """Let another agent have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------------------------ what a start begins with

    def key(self) -> SigningKey:
        """The device's key; made at the first start.

        Raises:
            StoreError: its file cannot be used.
        """
        return load_or_create_key(self.folder / "key")

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
                index = load_index((run_dir / _INDEX).read_bytes())
            for link in index.links:  # of what is in the chain, nothing is being fetched
                self.remove(run_dir.name, (have_file(link.blob, link.version),))
            found = parts.find(run_dir)
            indexes[run_dir.name], fetched[run_dir.name] = index, tuple(found)
            links = [part.head.link for part in found]
            kept = {_INDEX, run.residual_file}
            kept |= {link.file for link in index.links} | {pending.file for pending in run.pending}
            kept |= {name(link.blob, link.version) for link in links for name in (part_file, have_file)}
            for file in run_dir.iterdir():
                if file.name not in kept:
                    file.unlink(missing_ok=True)
        return indexes, fetched

    # ------------------------------------------------------------------------------ writing

    def save_state(self, state: AgentState) -> None:
        """Durable when it returns.

        Raises:
            StoreError: the disk does not take it.
        """
        self._replace(self.folder / "state", dump_state(state))

    def pin(self, public_key: bytes) -> None:
        """Durable when it returns.

        Raises:
            StoreError: the disk does not take it.
        """
        self._replace(self.folder / "coordinator.pub", public_key.hex().encode() + b"\n")

    def save_index(self, run: str, index: ModelIndex) -> None:
        """Write which model files there are.

        Raises:
            StoreError: the disk does not take it.
        """
        self._replace(self._path(run, _INDEX), dump_index(index), durable=False)

    def store_blob(self, run: str, blob: BlobKind, version: int, data: bytes) -> None:
        """Write a whole model file.

        Raises:
            StoreError: the disk does not take it.
        """
        self._replace(self._path(run, blob_file(blob, version)), data, durable=False)

    def write_chunk(self, run: str, head: PartHead, index: int, data: bytes) -> None:
        """Write a chunk of a model file that is being fetched.

        Raises:
            StoreError: the disk does not take it.
        """
        try:
            parts.write_chunk(self.run_dir(run), head, index, data)
        except OSError as error:
            raise _refused(self._path(run, part_file(head.link.blob, head.link.version)), error) from error

    def finish_blob(
        self, run: str, blob: BlobKind, version: int, ref: BlobRef
    ) -> tuple[bool, tuple[int, ...]]:
        """Put a fetched file in place if it is what was promised; otherwise say which chunks the disk did not keep.

        Raises:
            OSError: the file cannot be put in place.
        """
        return parts.finish(self.run_dir(run), blob, version, ref)

    def _replace(self, path: Path, data: bytes, *, durable: bool = True) -> None:
        temporary = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
            if durable:
                _flush_folder(path.parent)
        except OSError as error:
            raise _refused(path, error) from error

    def remove(self, run: str, names: tuple[str, ...]) -> None:
        """Remove files of a run."""
        for name in names:
            with contextlib.suppress(OSError):  # rubbish is no reason to stop
                self._path(run, name).unlink()

    def remove_run(self, run: str) -> None:
        """Remove all of a run."""
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
        if not self.holds(run, name, ref):
            raise RemoteError(f"the file {name} is not what was stored", reason="bad-hash")

    def holds(self, run: str, name: str, ref: BlobRef) -> bool:
        """Whether a file is there, can be read, and is the one that `ref` names."""
        return parts.matches(self._path(run, name), ref)

    def read(self, run: str, name: str, offset: int = 0, size: int | None = None) -> bytes | None:
        """Bytes of a file; None if it is gone."""
        try:
            with self._path(run, name).open("rb") as file:
                file.seek(offset)
                return file.read(-1 if size is None else size)
        except OSError:
            return None


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror}; the agent needs a disk that it can write to")
