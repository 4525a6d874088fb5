"""Memory and disk: enough for this model?"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from fedmq_edge_agent.core.words import size as size_text
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, failed, fine, skipped, warning

TORCH_BYTES: Final = 250_000_000
"""What PyTorch takes before there is a model, where it was not measured."""
SUPERVISOR_BYTES: Final = 50_000_000
MODEL_COPIES: Final = 2.0
"""A training's memory beside PyTorch's, in copies of the model: what `benchmarks/large_model.py` measures."""
_FLOAT_BYTES: Final = 4
_SPARE_BYTES: Final = 4_000_000
"""On the disk: the books, a spare, and the folders' own."""
_TIGHT: Final = 1.5
_CGROUP: Final = Path("/sys/fs/cgroup")


async def look_at_memory(device: Device) -> Finding:
    """Is there memory for the trainer with this model?"""
    left = memory_left()
    if left is None:
        return skipped("this system does not say how much there is")
    elements, known = _elements(device)
    bytes_left, whose = left
    allowed = device.settings.trainer.memory_limit
    own = int(device.probe.get("end", {}).get("own_bytes", 0)) + int(MODEL_COPIES * _FLOAT_BYTES * elements)
    if allowed is not None and own > allowed:
        return failed(
            f"a training {known} wants about {size_text(own)} of its own, and memory_limit allows {size_text(allowed)}",
            "raise memory_limit in [trainer], or train a smaller model",
        )
    torch_bytes = int(device.probe.get("end", {}).get("peak_bytes", 0)) or TORCH_BYTES
    needed = torch_bytes + int(MODEL_COPIES * _FLOAT_BYTES * elements)
    if not device.agent_runs:
        needed += SUPERVISOR_BYTES
    elif device.status:
        return fine(f"{size_text(bytes_left)} are left {whose}, beside the agent that runs")
    wants = f"a training {known} wants {size_text(needed)}, and {size_text(bytes_left)} are left {whose}"
    if bytes_left < needed:
        return failed(
            wants, "end other programs, add swap, or raise the unit's MemoryMax; or train a smaller model"
        )
    if bytes_left < _TIGHT * needed:
        return warning(
            wants, "it may do; if the trainer is killed for memory, end other programs or add swap"
        )
    return fine(wants)


async def look_at_disk(device: Device) -> Finding:
    """Is there room for this model's files, twice where a new one replaces an old one?"""
    folder = device.state_dir
    there = next(one for one in (folder, *folder.parents) if one.exists())
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    elements, known = _elements(device)
    manifest = None if device.announcement is None else device.announcement.manifest
    model = (
        elements if manifest is None else max(elements, 2 * (manifest.snapshot.size + manifest.chain_bytes))
    )
    # Two residuals while one replaces the other, the updates that may wait, and a base with its deltas.
    needed = 2 * _FLOAT_BYTES * elements + model + _SPARE_BYTES
    kept = _bytes_below(folder / "runs")
    needed = max(needed - kept, _SPARE_BYTES)
    wants = f"a model {known} wants {size_text(needed)} more, and {size_text(free)} are free in {there}"
    if free < needed:
        return failed(wants, f"make room there, or set state_dir in [device] to another disk than {there}")
    if free < _TIGHT * needed:
        return warning(wants, "make some more room there: the agent rests while its disk is full")
    return fine(wants)


def _bytes_below(folder: Path) -> int:
    """What the files in a folder take, while an agent may replace and remove them."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(where, name).stat().st_size
    return total


def _elements(device: Device) -> tuple[int, str]:
    """How large the model is: as the task makes it, or as the run's snapshot lets it be guessed."""
    task = device.probe.get("task", {})
    if "elements" in task:
        return int(task["elements"]), f"with {task['parameters']:,} parameters"
    if device.announcement is not None:
        return device.announcement.manifest.snapshot.size, "of the run"
    return 0, "whose size is not known yet"


def memory_left(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> tuple[int, str] | None:
    """Bytes that can be had without swapping, and whose they are; None where nothing says so.

    A container or a unit may have less than the machine: the least counts.
    """
    left: list[tuple[int, str]] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free = int(fields["MemAvailable"].split()[0]) + int(fields.get("SwapFree", "0").split()[0])
        left.append((free * 1024, "on this machine"))
    with contextlib.suppress(OSError, ValueError):
        most = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if most != "max":
            used = int((cgroup / "memory.current").read_text(encoding="ascii"))
            left.append((max(0, int(most) - used), "within this container's limit"))
    return min(left, default=None)
