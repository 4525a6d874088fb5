"""The agent's folder and whether an agent uses it now: without writing anything that stays, or making anything."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from pathlib import Path

from fedmq_edge_agent.core.state import load_state
from fedmq_edge_agent.core.words import span
from fedmq_edge_agent.disk_faults import fault_of, sentence
from fedmq_edge_agent.examining.course import in_thread
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, failed, fine, warning
from fedmq_edge_agent.examining.unit import described, service_of
from fedmq_edge_agent.shell.status import find
from fedmq_protocol.errors import StoreError
from fedmq_protocol.signing import PUBLIC_KEY_BYTES, SigningKey

_MIN_INODES = 100


async def look_at_agent(device: Device) -> Finding:
    """Does an agent use the state folder now? Then nobody may connect in this device's name."""
    device.agent_runs = is_held(device.state_dir / "lock")
    if not device.agent_runs:
        service = await in_thread(service_of, device.state_dir)
        if service:
            return warning(
                f"it does not run: {described(service)}",
                "`systemctl start fedmq-agent`, once the rest is well; `journalctl -u fedmq-agent` tells why it ended",
            )
        return fine("it does not run now, so that this examination may connect as this device")
    found = find(device.state_dir)
    if found.status is None or not found.running:
        return warning(
            "it runs, and has left no word of how it stands; nothing here connects in its name",
            "look at its log: `journalctl -u fedmq-agent`",
        )
    device.status = said = found.status
    if found.silent:
        return failed(
            f"it runs, and has said nothing for {span(found.age_s)}: it hangs, or its disk does",
            "restart it: `systemctl restart fedmq-agent`; then look at `dmesg`",
        )
    stands = f"it runs, and nothing here connects in its name. It is {said['state']}: {said['waiting']}"
    if said["state"] == "hindered":
        return failed(f"{stands}; {said['problem']}", "mend that; it tries again by itself")
    if said["failures"]:
        return warning(
            f"{stands}; its trainer failed {said['failures']} times in a row, last: {said['last_failure']}",
            "`fedmq agent try TASK` runs a training by hand",
        )
    return fine(stands)


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock; a file that is not there is held by nobody, and is not made."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


async def look_at_state(device: Device) -> Finding:
    """Can the folder be used: does it take a file and a flush, is what the agent kept there readable?"""
    folder = device.state_dir
    try:
        finding = await in_thread(_try_folder, folder)
    except OSError as error:
        return _refused(folder, error)
    if finding.level == "failed":
        return finding
    try:
        device.coordinator_key = device.settings.read_coordinator_key() or _pinned(folder)
        state = load_state((folder / "state").read_bytes())
    except FileNotFoundError:
        known = (folder / "key").exists()
    except (OSError, StoreError) as error:
        return failed(
            f"{folder}/state cannot be used: {error}",
            "put it back from a copy; or remove it to begin anew, which loses the updates without a receipt",
        )
    else:
        device.session, known = state.session, True
        if state.identity is not None or state.session:
            problem = _read_key(device, state.identity)
            if problem is not None:
                return problem
        waiting = sum(len(run.pending) for run in state.runs.values())
        if waiting:
            finding = fine(
                f"{finding.found}; {waiting} update{'' if waiting == 1 else 's'} without a receipt in it"
            )
    if not known:
        finding = Finding("", finding.level, f"{finding.found}; the agent was never started", finding.mend)
    return finding


def _try_folder(folder: Path) -> Finding:
    """Write, flush and remove a file where the agent would; in the nearest folder that is there.

    Raises:
        OSError: the disk does not take it.
    """
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir():
        return failed(
            f"{there} is a file, not a folder", f"remove it, or set another state_dir than {folder}"
        )
    descriptor, name = tempfile.mkstemp(prefix=".doctor-", suffix=".tmp", dir=there)
    try:
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)
    disk = os.statvfs(there)
    if disk.f_files and disk.f_favail < _MIN_INODES:
        return failed(
            f"{there} has {disk.f_favail} inodes left: no more files can be made, however much room there is",
            "remove some of the many small files on this file system",
        )
    for name in ("state", "key", "lock"):
        file = folder / name
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_uid != os.geteuid():
                return failed(
                    f"{file} belongs to the user {_user(file.stat().st_uid)}, and this runs as {_user(os.geteuid())}",
                    f"run the agent and its doctor as one user: chown -R that user {folder}",
                )
    if there != folder:
        return fine(f"{folder} will be made by the agent: {there} takes files, and flushes them")
    key = folder / "key"
    if key.exists() and stat.S_IMODE(key.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        return warning(f"{folder} takes files; but others than its owner may read {key}", f"chmod 600 {key}")
    return fine(f"{folder} takes files, and flushes them")


def _refused(folder: Path, error: OSError) -> Finding:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return failed(
            f"{_user(os.geteuid())} may not write in {folder}",
            f"run this as the agent's user; or chown that folder to {_user(os.geteuid())}, or set another state_dir",
        )
    said = sentence(error, str(folder))
    mend = "free some space there, or set state_dir to another disk"
    return failed(said, mend if fault_of(error) in {"full", "quota"} else "mend the disk; see `dmesg`")


def _user(number: int) -> str:
    import pwd  # noqa: PLC0415 - not everywhere

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _pinned(folder: Path) -> bytes | None:
    try:
        key = bytes.fromhex((folder / "coordinator.pub").read_text(encoding="ascii").strip())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        key = b""
    if len(key) != PUBLIC_KEY_BYTES:
        raise StoreError(f"{folder}/coordinator.pub holds no key; remove it to believe the next coordinator")
    return key


def _read_key(device: Device, identity: bytes | None) -> Finding | None:
    path = device.state_dir / "key"
    mend = f"put the right one back; or, to begin as a new device, remove {device.state_dir} as a whole"
    try:
        key = SigningKey(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except (OSError, ValueError) as error:
        return failed(f"{path}, by which the coordinator knows this device, cannot be used: {error}", mend)
    if identity is not None and key.public_key != identity:
        return failed(f"{path} is another key than the one by which this device is known", mend)
    device.key = key
    return None
