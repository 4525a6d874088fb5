"""Our own code as a wheel, made of the packages that run here: a checkout's or an installed one's.

So a device has what its operator has tried, and nothing is built or fetched for it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedmq_edge_agent.flashing.errors import FlashError

DISTRIBUTION: Final = "fedmq"
PACKAGES: Final = ("fedmq", "fedmq_protocol", "fedmq_broker", "fedmq_coordinator", "fedmq_edge_agent")
"""All of ours: the command's verbs look into one another, and together they are smaller than one wheel of others."""

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The oldest date that an archive can tell: the same code makes the same bytes."""


def requirements() -> list[str]:
    """What our distribution requires, extras included, as its metadata says it.

    Raises:
        FlashError: fedmq runs here without being installed.
    """
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise FlashError("fedmq is not installed here, so that nobody knows what it requires") from None


def write_wheel(folder: Path) -> Path:
    """Make the wheel in `folder`, and say where it is."""
    version = importlib.metadata.version(DISTRIBUTION)
    info = f"{DISTRIBUTION}-{version}.dist-info"
    path = folder / f"{DISTRIBUTION}-{version}-py3-none-any.whl"
    wheel = "Wheel-Version: 1.0\nGenerator: fedmq\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    metadata = importlib.metadata.distribution(DISTRIBUTION).read_text("METADATA") or (
        f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n"
    )
    scripts = f"[console_scripts]\n{DISTRIBUTION} = fedmq.cli:main\n"
    record = io.StringIO()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _code():
            _add(archive, record, name, content)
        _add(archive, record, f"{info}/METADATA", metadata.encode())
        _add(archive, record, f"{info}/WHEEL", wheel.encode())
        _add(archive, record, f"{info}/entry_points.txt", scripts.encode())
        record.write(f"{info}/RECORD,,\n")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", _EPOCH), record.getvalue())
    return path


def _code() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FlashError(f"{package} cannot be found here, and a device needs it")
        folder = Path(spec.submodule_search_locations[0])
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _add(archive: zipfile.ZipFile, record: io.StringIO, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    record.write(f"{name},sha256={digest},{len(content)}\n")
