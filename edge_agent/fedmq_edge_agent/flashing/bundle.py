"""One file that turns a board into a device: a shell script, with an archive of everything behind it.

The archive is tar, not compressed: wheels are. In truth it is two, one behind the other. The first is small:

    manifest               SHA-256 of each other file, as `sha256sum` writes it
    unpack.py              what lays a release out, on the board
    fedmq-agent.service    the unit
    etc/                   device.toml and identity/: of this device alone, and secret

The second is the software, the same for each device with the same task:

    wheels/                the agent and all that it needs, for that board
    task/, lib/            what the device trains
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Final

from fedmq_edge_agent.flashing import own, platforms, requirements, settings, tasks
from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.platforms import Platform
from fedmq_edge_agent.flashing.progress import Progress, silent
from fedmq_edge_agent.flashing.requirements import Requirement
from fedmq_edge_agent.flashing.settings import Member
from fedmq_edge_agent.flashing.wheels import Fetch, Gathering, Wheel, default_cache, fetch_with_pip

_OFFSET_DIGITS: Final = 9
_BLOCK: Final = 1 << 20
_COMPILED: Final = 1.3
"""What is installed, compiled files and blocks of the file system included, over the sum of the files' sizes."""

_RELEASED: Final = ("wheels/", "lib/", "task/")
_GLIBC: Final = re.compile(r"manylinux_2_(\d+)_")


@dataclass(frozen=True)
class Plan:
    """What a bundle is to hold.

    Attributes:
        member: whose it is.
        platform: of the board.
        python: of the board, as in "3.11".
        task: what it trains.
        torch: whether PyTorch travels along.
        extra: what the task needs beyond what it says itself.
    """

    member: Member
    platform: Platform
    python: str
    task: tasks.TaskFiles
    torch: bool = True
    extra: tuple[str, ...] = ()

    def needs(self) -> list[Requirement]:
        """What our own code requires on the board: the base and, for training, what comes with PyTorch."""
        extras = frozenset({"agent", "trainer"}) if self.torch else frozenset({"agent"})
        environment = self.platform.environment(self.python)
        lines = [requirements.parse(line) for line in own.requirements()]
        needs = [
            Requirement(line.name, line.extras, line.specifier)
            for line in lines
            if requirements.holds(line.marker, environment, extras)
        ]
        # The trainer reads snapshots with it, PyTorch or not: a board may have its own PyTorch.
        return needs if self.torch else [*needs, requirements.parse("safetensors")]

    def chosen(self) -> list[Requirement]:
        """What the task needs besides."""
        return [requirements.parse(line) for line in (*self.task.requires, *self.extra)]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was made.

    Attributes:
        path: the file.
        release: the digest that names its software, the same for all devices with the same software.
        size: of the file, in bytes.
        installed_bytes: what it takes on the board, about.
        wheels: in it, by file name, with their sizes in bytes.
    """

    path: Path
    release: str
    size: int
    installed_bytes: int
    wheels: dict[str, int]


def plan(
    member: Member,
    arch: str,
    python: str,
    *,
    task: str | None = None,
    torch: bool = True,
    extra: Iterable[str] = (),
) -> Plan:
    """Settle what goes into a bundle.

    Raises:
        FlashError: the board is unknown, or there is no task.
    """
    where = task or member.task
    if where is None:
        raise FlashError(
            f"what does {member.name} train? `task` in [device] of its device.toml says it, or --task"
        )
    return Plan(member, platforms.find(arch, python), python, tasks.collect(where), torch, tuple(extra))


def write(
    plan: Plan,
    path: Path,
    *,
    cache: Path | None = None,
    fetch: Fetch = fetch_with_pip,
    progress: Progress = silent,
) -> Bundle:
    """Make the bundle at `path`, mode 0600: it holds the device's key.

    Args:
        plan: what it is to hold.
        path: the file.
        cache: where wheels are kept; else in this user's cache.
        fetch: how wheels are fetched.
        progress: told of what takes long.

    Raises:
        FlashError: something that it needs cannot be had.
    """
    gathering = Gathering(plan.platform, plan.python, cache or default_cache(), fetch, progress)
    wheels = gathering.gather(plan.needs(), plan.chosen())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bundle-") as scratch:
        ours = Wheel(own.write_wheel(Path(scratch)))
        files = _files(plan, [*wheels, ours])
        installed = int(_COMPILED * sum(_unpacked(name, source) for name, source in files.items()))
        manifest, release = _manifest(files)
        software = {name: source for name, source in files.items() if name.startswith(_RELEASED)}
        parts = {"manifest": manifest} | {name: files[name] for name in files if name not in software}
        payload = Path(scratch) / "payload"
        with _private(payload) as out:
            _write_tar(out, parts, silent)
            parts_bytes = out.tell()
            _write_tar(out, software, progress)
        header = _header(plan, release, payload, parts_bytes, installed, glibc=_newest_glibc(wheels))
        growing = Path(scratch) / "bundle"
        with _private(growing) as out, payload.open("rb") as source:
            out.write(header)
            shutil.copyfileobj(source, out, _BLOCK)
            out.flush()
            os.fsync(out.fileno())
        growing.replace(path)
        sizes = {wheel.path.name: wheel.path.stat().st_size for wheel in (*wheels, ours)}
    return Bundle(path, release, path.stat().st_size, installed, sizes)


def _private(path: Path) -> IO[bytes]:
    """A new file that nobody else may read, from its first byte on."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _files(plan: Plan, wheels: Iterable[Wheel]) -> dict[str, Path | bytes]:
    content = resources.files(__package__)
    device = dict(plan.member.settings)
    device["device"] = {**device["device"], "task": plan.task.setting}
    files: dict[str, Path | bytes] = {f"wheels/{wheel.path.name}": wheel.path for wheel in wheels}
    files |= plan.task.files
    files["unpack.py"] = content.joinpath("unpack.py").read_bytes()
    files["fedmq-agent.service"] = content.joinpath("fedmq-agent.service").read_bytes()
    files["etc/device.toml"] = settings.to_toml(device).encode()
    files |= {f"etc/identity/{name}": text for name, text in plan.member.identity.items()}
    return dict(sorted(files.items()))


def _unpacked(name: str, source: Path | bytes) -> int:
    if name.startswith("wheels/") and isinstance(source, Path):
        with zipfile.ZipFile(source) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _manifest(files: dict[str, Path | bytes]) -> tuple[bytes, str]:
    lines = [f"{_sha256(source)}  {name}\n" for name, source in files.items()]
    software = "".join(line for line in lines if line.split("  ", 1)[1].startswith(_RELEASED))
    return "".join(lines).encode(), hashlib.sha256(software.encode()).hexdigest()[:16]


def _sha256(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tar(out: IO[bytes], files: Mapping[str, Path | bytes], progress: Progress) -> None:
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, (name, source) in enumerate(files.items()):
            progress("packing", number, len(files))
            entry = tarfile.TarInfo(name)
            entry.mode = 0o600 if name.startswith("etc/") else 0o644
            if isinstance(source, bytes):
                entry.size = len(source)
                tar.addfile(entry, io.BytesIO(source))
            else:
                entry.size = source.stat().st_size
                with source.open("rb") as file:
                    tar.addfile(entry, file)
    progress("packing", len(files), len(files))


def _newest_glibc(wheels: Iterable[Wheel]) -> int:
    """The glibc 2.x that all wheels are content with: each names the oldest that it needs, by one or more tags."""
    needs = [17]
    for wheel in wheels:
        tags = [int(minor) for minor in _GLIBC.findall(wheel.path.name)]
        if tags:
            needs.append(min(tags))
    return max(needs)


def _header(
    plan: Plan, release: str, payload: Path, parts_bytes: int, installed: int, *, glibc: int
) -> bytes:
    text = resources.files(__package__).joinpath("install.sh").read_text(encoding="utf-8")
    values = {
        "NAME": plan.member.name,
        "RELEASE": release,
        "ARCH": plan.platform.arch,
        "KERNELS": " ".join(plan.platform.kernels),
        "BITS": str(plan.platform.bits),
        "PYTHON": plan.python,
        "GLIBC": str(glibc),
        "NEEDS_KB": str(installed // 1024 + 1),
        "PARTS": str(parts_bytes),
        "PAYLOAD": _sha256(payload),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    # The offset's digits are as many whatever it is: `1` before them, so that no shell takes them for octal.
    size = len(text.replace("@OFFSET@", "0" * _OFFSET_DIGITS).encode())
    return text.replace("@OFFSET@", f"{size:0{_OFFSET_DIGITS}d}").encode()
