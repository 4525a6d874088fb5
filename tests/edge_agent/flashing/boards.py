"""Wheels and members made by a test: small, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmq_edge_agent.flashing.platforms import Platform
from fedmq_edge_agent.flashing.requirements import Requirement


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
    files: Mapping[str, str] | None = None,
) -> Path:
    """A wheel with one module, or with `files`."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-{tag}.whl"
    info = f"{module}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {line}" for line in requires]
    content = dict(files or {f"{module}.py": f"version = {version!r}\n"})
    content[f"{info}/METADATA"] = "\n".join(metadata) + "\n"
    content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for where, text in content.items():
            archive.writestr(where, text)
        record = "".join(
            f"{where},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
            f"{len(text.encode())}\n"
            for where, text in content.items()
        )
        archive.writestr(f"{info}/RECORD", record)
    return path


def fetch_stand_ins(
    _platform: Platform, _python: str, wanted: list[Requirement], folder: Path
) -> list[Requirement]:
    """A wheel of whatever is asked for, in the version that is asked for, which requires nothing."""
    for one in wanted:
        make_wheel(folder, one.name, one.specifier.partition(",")[0].lstrip("=<>~!") or "1.0")
    return []


class Index:
    """Stands in for pip: knows distributions by name, each with a version and what it requires."""

    def __init__(self, wheels: Mapping[str, tuple[str, Sequence[str]]]) -> None:
        self._wheels = wheels
        self.asked: list[str] = []

    def __call__(
        self, platform: Platform, python: str, wanted: list[Requirement], folder: Path
    ) -> list[Requirement]:
        """See `fedmq_edge_agent.flashing.wheels.Fetch`."""
        self.asked += [str(one) for one in wanted]
        for one in wanted:
            if one.name in self._wheels:
                version, requires = self._wheels[one.name]
                make_wheel(folder, one.name, version, requires=requires)
        return [one for one in wanted if one.name not in self._wheels]
