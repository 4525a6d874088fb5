"""The boards that a bundle can be made for, and what a wheel for each is called.

A wheel that says `manylinux_2_28` wants glibc 2.28 or newer; Debian 12 and Raspberry Pi OS of the same age have 2.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedmq_edge_agent.flashing.errors import FlashError

PYTHONS: Final = ("3.11", "3.12", "3.13")
"""Debian 12, Ubuntu 24.04 and Debian 13 have one each."""

_GLIBCS: Final = (17, 24, 26, 27, 28, 31, 34, 35, 36)


@dataclass(frozen=True)
class Platform:
    """One kind of board.

    Attributes:
        arch: its name in commands.
        machine: what Python calls its processor.
        bits: of a pointer; a 64-bit kernel may carry 32-bit programs.
        kernels: what `uname -m` may say there.
    """

    arch: str
    machine: str
    bits: int
    kernels: tuple[str, ...]

    def tags(self) -> tuple[str, ...]:
        """Names of this platform in wheels, oldest glibc first, so that a bundle asks for no more than it must.

        An index of a vendor's own may say `linux_…`.
        """
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in _GLIBCS]
        return (f"manylinux2014_{self.machine}", *tags, f"linux_{self.machine}")

    def environment(self, python: str) -> Mapping[str, str]:
        """The variables of PEP 508 on such a board."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{python}.0",
            "python_version": python,
            "sys_platform": "linux",
        }


PLATFORMS: Final[dict[str, Platform]] = {
    platform.arch: platform
    for platform in (
        Platform("arm64", "aarch64", 64, ("aarch64", "arm64")),
        Platform("armhf", "armv7l", 32, ("armv7l", "armv8l", "aarch64")),
        Platform("x86-64", "x86_64", 64, ("x86_64",)),
    )
}


def find(arch: str, python: str) -> Platform:
    """The platform of that name.

    Raises:
        FlashError: there is none, or nothing is made for that Python.
    """
    if arch not in PLATFORMS:
        raise FlashError(f"there is no architecture {arch!r}; there are {', '.join(PLATFORMS)}")
    if python not in PYTHONS:
        raise FlashError(f"bundles are made for Python {', '.join(PYTHONS)}, not for {python!r}")
    return PLATFORMS[arch]


def of_machine(machine: str, bits: int) -> Platform:
    """The platform that a board says it is.

    Raises:
        FlashError: nothing is made for such a board.
    """
    for platform in PLATFORMS.values():
        if machine in platform.kernels and bits == platform.bits:
            return platform
    raise FlashError(f"nothing is made for a board whose Python is {bits}-bit on {machine}")
