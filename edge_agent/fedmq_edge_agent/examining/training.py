"""The trainer's side: PyTorch, the task and the data, tried in a child process that says how far it came."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from typing import Any, Final

from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, failed, fine, skipped, warning
from fedmq_edge_agent.examining.machine import memory_left
from fedmq_protocol.messages import TaskRef

CHILD_S: Final = 120.0
"""PyTorch may take half a minute to import from a slow card."""
_SLOW_S: Final = 30.0
_BESIDE_AN_AGENT_BYTES: Final = 700_000_000
"""So much memory has to be free before a second PyTorch is started beside the agent's own."""
_LAST_WORDS_BYTES: Final = 4_096
_MODULE: Final = "fedmq_edge_agent.trainer.soundness"


async def try_torch(device: Device) -> Finding:
    """Does PyTorch import, compute and go back?"""
    if device.agent_runs:
        left = memory_left()
        if left is not None and left[0] < _BESIDE_AN_AGENT_BYTES:
            return skipped(
                "the agent runs, and there is too little memory for a second PyTorch beside its own"
            )
    died = await _run_child(device)
    found = device.probe.get("torch")
    if found is None:
        return _died(died, "importing PyTorch")
    if "error" in found:
        error = str(found["error"])
        if error.startswith("ModuleNotFoundError") and "'torch'" in error:
            return failed("it is not installed", "install it for this Python: `pip install fedmq[trainer]`")
        return failed(f"it does not work: {error}", "install PyTorch anew, in a version for this processor")
    if found["took_s"] > _SLOW_S:
        return warning(
            f"{found['version']} works, and took {found['took_s']:.0f} s to begin with",
            "is the memory card slow or failing, or is memory swapped? See `dmesg` and `free -m`",
        )
    return fine(f"{found['version']} computes right, {found['took_s']:.1f} s after its start")


async def try_task(device: Device) -> Finding:
    """Does the task open, and is it the run's?"""
    found = device.probe.get("task")
    if found is None:
        return _died(str(device.probe.get("died", {}).get("why", "")), "opening the task")
    if "error" in found:
        return failed(
            str(found["error"]), "mend the task, or `task` in [device]; `fedmq agent try` shows more"
        )
    ours = f"{found['name']} {found['version']}, {found['parameters']:,} parameters"
    announcement = device.announcement
    if announcement is None or announcement.state != "running":
        return fine(ours)
    return _compared(ours, found, announcement.task, announcement.run)


def _compared(ours: str, found: dict[str, Any], theirs: TaskRef, run: str) -> Finding:
    if found["name"] != theirs.name:
        return warning(
            f"{ours}; the run {run} trains another task, {theirs.name}: this device is not asked",
            "nothing, if that is meant; else set `task` in [device]",
        )
    mend = f"install the task of the run here: {theirs.name} {theirs.version}"
    if found["version"] != theirs.version:
        return failed(f"{ours}; the run {run} wants version {theirs.version}", mend)
    if found["schema_hash"] != theirs.schema_hash:
        return failed(
            f"{ours}; the run {run} trains tensors of other names or shapes ({theirs.schema_hash[:12]}, here "
            f"{found['schema_hash'][:12]})",
            mend,
        )
    return fine(f"{ours}: as the run {run} wants it")


async def try_data(device: Device) -> Finding:
    """Is there anything to train on? Counts only."""
    found = device.probe.get("data")
    if found is None:
        return _died(str(device.probe.get("died", {}).get("why", "")), "loading the data")
    if "error" in found:
        return failed(
            str(found["error"]), "look at [device.data], and whether the files are there and readable"
        )
    count, held_out = found["num_examples"], found["num_test_examples"]
    if count == 0:
        return failed(
            "load_data gives no examples", "look at [device.data], and whether there are data at all"
        )
    return fine(f"{count:,} examples to train on" + (f", {held_out:,} to test on" if held_out else ""))


def _died(why: str, doing: str) -> Finding:
    if "SIGILL" in why:
        mend = "this PyTorch is built for a newer processor: install one for this board"
    elif "SIGKILL" in why:
        mend = "free some memory, or add swap: see `free -m` and `dmesg`"
    else:
        mend = "run the same by hand: `fedmq agent try TASK`"
    return failed(f"{why or 'the process said nothing'} while {doing}", mend)


async def _run_child(device: Device) -> str:
    """Let a child take its steps; into `device.probe`. Returns how it ended, where it was not as it should."""
    settings = device.settings
    wanted = {
        "task": settings.task,
        "settings": settings.data,
        "device": settings.id,
        "nice": settings.trainer.nice,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.trainer.threads or 1)}
    # Into a file, not a pipe: what it said before it hung is not lost, and nothing that it started keeps it open.
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as steps:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=steps,
            stderr=errors,
            env=environment,
            process_group=0,
        )
        why = ""
        try:
            async with asyncio.timeout(CHILD_S):
                await process.communicate(json.dumps(wanted).encode() + b"\n")
        except TimeoutError:
            why = f"the process did not end within {CHILD_S:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # a loader's own processes, too
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        steps.seek(0)
        said = steps.read()
        errors.seek(0, os.SEEK_END)
        errors.seek(max(0, errors.tell() - _LAST_WORDS_BYTES))
        last = errors.read().decode(errors="replace").strip().splitlines()
    for line in said.splitlines():
        with contextlib.suppress(ValueError, KeyError):
            step = json.loads(line)
            device.probe[step["step"]] = step
    code = process.returncode or 0
    if code < 0 and not why:
        why = f"the process was ended by {signal.Signals(-code).name}"
    elif code and not why and not any("error" in step for step in device.probe.values()):
        why = last[-1][:300] if last else f"the process ended with code {code}"
    device.probe["died"] = {"why": why}
    return why
