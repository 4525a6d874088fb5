"""Clean Debian systems, made once by debootstrap and kept: what a board is before anybody flashed it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.edge_agent.flashing.roots import require_root

SUITE: Final = "bookworm"
DEBIAN: Final = {"x86-64": "amd64", "arm64": "arm64"}
PATIENCE_S: Final = {"x86-64": 300, "arm64": 3_600}
"""For debootstrap: where its mirror is out of reach, it would try for long."""
_OUT_OF_TIME: Final = (124, 137)
INTERPRETER: Final = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")


def cache() -> Path:
    """Where systems are kept for the next time: some 270 MB each."""
    return Path(os.environ.get("FEDMQ_FIELD_CACHE", "/var/cache/fedmq-field"))


def clean_system(arch: str = "x86-64") -> Path:
    """A folder with Debian and its Python, and nothing else; not to be changed. Skips where it cannot be made.

    Another architecture than this machine's needs qemu-user-static, and takes minutes.
    """
    require_root("debootstrap")
    if arch != "x86-64":
        _emulate()
    made = cache() / f"{SUITE}-{DEBIAN[arch]}"
    if made.exists():
        return made
    growing = made.with_name(f"{made.name}.{os.getpid()}")
    growing.mkdir(parents=True)
    command = [
        *("unshare", "--mount", "--fork", "--kill-child"),  # what it mounts, and runs, ends with it
        *("timeout", "--kill-after=5", str(PATIENCE_S[arch])),
        "debootstrap",
        f"--arch={DEBIAN[arch]}",
        "--variant=minbase",
        "--include=python3",
        SUITE,
        str(growing),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(growing, ignore_errors=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("E:")]
        why = lines[-1] if lines else done.stderr.strip()[-200:]
        if done.returncode in _OUT_OF_TIME:
            why = f"not within {PATIENCE_S[arch]} s: is its mirror within reach?"
        pytest.skip(f"debootstrap could make no system here: {why}")
    shutil.rmtree(growing / "var/cache/apt", ignore_errors=True)
    shutil.rmtree(growing / "var/lib/apt/lists", ignore_errors=True)
    growing.chmod(0o755)
    growing.rename(made)
    return made


def _emulate() -> None:
    """Let the kernel run the other architecture's programs, by qemu."""
    if INTERPRETER.exists():
        return
    if not INTERPRETER.parent.joinpath("register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(INTERPRETER.parent)], check=False)
    if shutil.which("update-binfmts") is not None:
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=False, capture_output=True)
    if not INTERPRETER.exists():
        pytest.skip("this kernel does not run arm64 (apt-get install qemu-user-static)")
