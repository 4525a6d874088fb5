"""Runs on the board, with its own Python and nothing else: lays the archive's software out as a release.

    python3 unpack.py ARCHIVE OFFSET MANIFEST RELEASE

Reads the tar archive that begins at OFFSET bytes of ARCHIVE, checks every file of it against MANIFEST, and leaves the
folder RELEASE complete or not there at all. Wheels are read out of the archive as they lie in it: there need be room
for what is installed, not for the wheels besides.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

_BLOCK = 1 << 20


class UnpackError(Exception):
    """The archive is not what it says."""


def main(archive: Path, offset: int, manifest_path: Path, release: Path) -> None:
    """Lay out a release; what an earlier call left half done goes first.

    Raises:
        UnpackError: the archive is damaged.
    """
    growing = release.with_name(f".{release.name}.part")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True, mode=0o755)
    manifest = _manifest(manifest_path)
    shipped = [name for name in manifest if name.startswith(("wheels/", "lib/", "task/"))]
    with archive.open("rb") as file:
        file.seek(offset)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = {member.name: member for member in tar if member.isfile()}
            for number, name in enumerate(shipped, 1):
                print(f"  {number:2} of {len(shipped)}: {PurePosixPath(name).name}", flush=True)  # noqa: T201
                _check(tar, members, name, manifest[name])
                content = tar.extractfile(members[name])
                assert content is not None
                if name.startswith("wheels/"):
                    _unpack_wheel(content, growing / "lib")
                else:
                    _write(growing, name, content, executable=False)
    print("  compiling", flush=True)  # noqa: T201
    _compile(growing)
    (growing / "manifest").write_text("".join(f"{manifest[name]}  {name}\n" for name in sorted(shipped)))
    os.sync()
    growing.rename(release)
    os.sync()


def _compile(folder: Path) -> None:
    """Compile now what the agent may not write later; by content, not by time: a board's clock may stand at 1970."""
    how: dict[str, Any] = {
        "quiet": 2,
        "rx": re.compile(r"/tests/"),  # nobody runs them there
        "invalidation_mode": py_compile.PycInvalidationMode.UNCHECKED_HASH,
    }
    try:
        compileall.compile_dir(str(folder), workers=0, **how)
    except OSError:  # no /dev/shm in this root: processes cannot share the work
        compileall.compile_dir(str(folder), workers=1, **how)


def _manifest(path: Path) -> dict[str, str]:
    lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: digest for digest, name in lines}


def _check(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, wanted: str) -> None:
    if name not in members:
        raise UnpackError(f"the archive lacks {name}")
    digest = hashlib.sha256()
    content = tar.extractfile(members[name])
    assert content is not None
    while block := content.read(_BLOCK):
        digest.update(block)
    if digest.hexdigest() != wanted:
        raise UnpackError(f"{name} is damaged: its SHA-256 is not what the manifest says")


def _unpack_wheel(content: IO[bytes], lib: Path) -> None:
    with zipfile.ZipFile(content) as wheel:
        for entry in wheel.infolist():
            name = _place(entry.filename)
            if name is not None and not entry.is_dir():
                with wheel.open(entry) as source:
                    _write(lib, name, source, executable=bool(entry.external_attr >> 16 & 0o100))


def _place(name: str) -> str | None:
    """Where pip's `--target` would lay it; None for programs, headers and data outside the library."""
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return name
    kind, _, inner = rest.partition("/")
    return inner if kind in {"purelib", "platlib"} else None


def _write(folder: Path, name: str, content: IO[bytes], *, executable: bool) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UnpackError(f"the archive would write {name}")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file, _BLOCK)
    path.chmod(0o755 if executable else 0o644)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    except (UnpackError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        sys.exit(f"unpacking failed: {error}")
