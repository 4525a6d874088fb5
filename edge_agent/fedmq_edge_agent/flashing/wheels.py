"""Wheels for a board, fetched on another machine with all that they need, and kept for the next bundle.

pip fetches and checks them; which are needed is found out here, from each wheel's own metadata, because pip evaluates
markers for the machine that it runs on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.parser import Parser
from importlib import resources
from pathlib import Path
from typing import Final

from fedmq_edge_agent.flashing import requirements
from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.platforms import Platform
from fedmq_edge_agent.flashing.progress import Progress, silent
from fedmq_edge_agent.flashing.requirements import Requirement, normal

_WHEEL: Final = re.compile(r"^(?P<name>[^-]+)-(?P<version>[^-]+)(?:-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl$")
_UNREACHED: Final = "after connection broken by"
_CUDA: Final = re.compile(r"^(nvidia-|cuda-|triton$)")

Fetch = Callable[[Platform, str, list[Requirement], Path], list[Requirement]]
"""Fetch what is asked for into a folder, for a platform and a Python; returns those that there are no wheels of."""


@dataclass(frozen=True)
class Wheel:
    """One wheel file."""

    path: Path

    @property
    def name(self) -> str:
        """The distribution's, as `normal` writes it."""
        return normal(self._match()["name"])

    @property
    def version(self) -> str:
        return self._match()["version"]

    def _match(self) -> re.Match[str]:
        match = _WHEEL.match(self.path.name)
        assert match is not None, self.path
        return match

    def requires(self) -> list[Requirement]:
        """What it requires, on any platform."""
        with zipfile.ZipFile(self.path) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            if len(names) != 1:
                raise FlashError(f"{self.path} is no wheel: it has no metadata")
            metadata = Parser().parsestr(archive.read(names[0]).decode("utf-8", "replace"))
        return [requirements.parse(line) for line in metadata.get_all("Requires-Dist") or []]


def default_cache() -> Path:
    """Where wheels are kept for the next time."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fedmq" / "wheels"


def pins(platform: Platform, python: str) -> dict[str, str]:
    """The specifier of each distribution whose version is decided, for a platform."""
    text = resources.files(__package__).joinpath("pins.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    parsed = [requirements.parse(line) for line in lines]
    environment = platform.environment(python)
    return {pin.name: pin.specifier for pin in parsed if requirements.holds(pin.marker, environment)}


def fetch_with_pip(
    platform: Platform, python: str, wanted: list[Requirement], folder: Path
) -> list[Requirement]:
    """`pip download` for another machine: all at once, and one by one where that fails.

    Raises:
        FlashError: pip is not there, or does not reach where it looks.
    """
    if _pip(platform, python, wanted, folder):
        return []
    if len(wanted) == 1:
        return wanted
    return [one for one in wanted if not _pip(platform, python, [one], folder)]


def _pip(platform: Platform, python: str, wanted: list[Requirement], folder: Path) -> bool:
    tags = [option for tag in platform.tags() for option in ("--platform", tag)]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", python),
        *("--dest", str(folder), *tags),
        *(f"{one.name}{one.specifier}" for one in wanted),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - names are checked
    if "No module named pip" in done.stderr:
        raise FlashError(f"{sys.executable} has no pip, which fetches the wheels: python -m ensurepip")
    if done.returncode != 0 and _UNREACHED in done.stderr:
        names = ", ".join(str(one) for one in wanted)
        raise FlashError(
            f"pip does not reach an index that it looks into for {names}: is this machine in a network, and are "
            "PIP_INDEX_URL and PIP_EXTRA_INDEX_URL right? `pip download` shows more"
        )
    return done.returncode == 0


@dataclass
class Gathering:
    """Collects the wheels that some requirements need on one platform.

    Attributes:
        platform: of the board.
        python: its version, as in "3.11".
        cache: a folder where wheels are kept.
        fetch: how a wheel gets there.
        progress: told of each wheel.
    """

    platform: Platform
    python: str
    cache: Path = field(default_factory=default_cache)
    fetch: Fetch = fetch_with_pip
    progress: Progress = silent

    def gather(self, needs: Iterable[Requirement], chosen: Iterable[Requirement] = ()) -> list[Wheel]:
        """Every wheel that is needed, by name.

        Args:
            needs: of our own; versions come from pins.txt.
            chosen: what the task needs; a version that is said there goes before pins.txt.

        Raises:
            FlashError: there is no wheel of something for this platform; all of those are named. Or versions clash.
        """
        chosen = list(chosen)
        decided = pins(self.platform, self.python) | {
            one.name: one.specifier for one in chosen if one.specifier
        }
        environment = self.platform.environment(self.python)
        found: dict[str, Wheel] = {}
        missing: dict[str, Requirement] = {}
        followed: set[tuple[str, frozenset[str]]] = set()
        asked = [(one, "fedmq") for one in needs] + [(one, "this task") for one in chosen]
        asked = [(one, by) for one, by in asked if requirements.holds(one.marker, environment)]
        while asked:
            fresh = {one.name: one for one, _ in asked if one.name not in found and one.name not in missing}
            self.progress("wheels", len(found), len(found) + len(fresh))
            got, lacking = self._get(
                [Requirement(name, specifier=decided.get(name, one.specifier)) for name, one in fresh.items()]
            )
            found.update(got)
            missing.update({one.name: one for one in lacking})
            _check_versions(asked, found)
            following: list[tuple[Requirement, str]] = []
            for one, _ in asked:
                if one.name in found and (one.name, one.extras) not in followed:
                    followed.add((one.name, one.extras))
                    following += [
                        (need, one.name)
                        for need in found[one.name].requires()
                        if requirements.holds(need.marker, environment, one.extras)
                    ]
            _refuse_cuda(following)
            asked = following
        self.progress("wheels", len(found), len(found))
        if missing:
            raise FlashError(
                f"there are no wheels for {self.platform.arch} and Python {self.python} of "
                f"{', '.join(str(missing[name]) for name in sorted(missing))}; where you know an index that has them, "
                "name it to pip (PIP_EXTRA_INDEX_URL)"
            )
        return [found[name] for name in sorted(found)]

    def _get(self, wanted: list[Requirement]) -> tuple[dict[str, Wheel], list[Requirement]]:
        folder = self.cache / f"{self.platform.arch}-{self.python}"
        folder.mkdir(parents=True, exist_ok=True)
        found = {one.name: wheel for one in wanted if (wheel := _kept(folder, one)) is not None}
        rest = [one for one in wanted if one.name not in found]
        if not rest:
            return found, []
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as incoming:
            lacking = self.fetch(self.platform, self.python, rest, Path(incoming))
            for path in Path(incoming).glob("*.whl"):
                shutil.move(path, folder / path.name)
        for one in rest:
            if one not in lacking and (wheel := _kept(folder, one)) is not None:
                found[one.name] = wheel
        return found, [one for one in rest if one.name not in found]


def _kept(folder: Path, wanted: Requirement) -> Wheel | None:
    wheels = [Wheel(path) for path in sorted(folder.glob("*.whl")) if _WHEEL.match(path.name)]
    fitting = [
        wheel
        for wheel in wheels
        if wheel.name == wanted.name and requirements.satisfies(wheel.version, wanted.specifier)
    ]
    return max(fitting, key=lambda wheel: wheel.path.stat().st_mtime, default=None)


def _check_versions(asked: list[tuple[Requirement, str]], found: dict[str, Wheel]) -> None:
    for one, by in asked:
        wheel = found.get(one.name)
        if wheel is not None and not requirements.satisfies(wheel.version, one.specifier):
            raise FlashError(f"{by or 'this device'} needs {one}, and {wheel.version} is what there is")


def _refuse_cuda(following: list[tuple[Requirement, str]]) -> None:
    cuda = sorted({need.name for need, by in following if by == "torch" and _CUDA.match(need.name)})
    if cuda:
        raise FlashError(
            f"the PyTorch that pip finds needs CUDA ({cuda[0]} and {len(cuda) - 1} more, gigabytes): name pip an index "
            "of CPU-only builds (PIP_EXTRA_INDEX_URL), or use --without-torch where the device has its own"
        )
