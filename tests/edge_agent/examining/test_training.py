"""PyTorch that is missing, broken or wrong; tasks and data that do not fit: in the child process that tries them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding
from fedmq_edge_agent.examining.machine import look_at_memory
from fedmq_edge_agent.examining.training import try_task
from fedmq_edge_agent.shell.status import start_of
from fedmq_protocol.messages import TaskRef
from tests.edge_agent.examining.clinic import findings_of
from tests.edge_agent.scripted import NOBODY, ScriptedCoordinator

NAMES = ("torch", "task", "data", "memory")
IRIS = "fedmq.tasks.iris"


def device(folder: Path, *, task: str = IRIS, run: TaskRef | None = None, **changes: object) -> Device:
    settings = AgentSettings.model_validate(
        {"id": "dev-1", "task": task, "state_dir": folder / "state", "trainer": {"nice": 0}, **changes}
    )
    made = Device(settings)
    if run is not None:
        script = ScriptedCoordinator(task=run)
        made.announcement = script.announced(0, NOBODY, 1.0)
    return made


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a package called torch before the real one."""
    (folder / "fakes" / "torch").mkdir(parents=True)
    (folder / "fakes" / "torch" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'fakes'}:{os.environ.get('PYTHONPATH', '')}")


async def examined(one: Device) -> dict[str, Finding]:
    return await findings_of(one, *NAMES)


async def test_a_device_that_can_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fedmq_edge_agent.examining.machine.memory_left", lambda: (8_000_000_000, "on this machine")
    )
    one = device(tmp_path)
    found = await examined(one)
    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(NAMES, "ok")
    assert "iris 1, 1,315 parameters" in found["task"].found
    assert found["data"].found == "120 examples to train on"
    schema = one.probe["task"]["schema_hash"]
    # The same child, and a run that wants another shape, version or task.
    for wanted, level, words in (
        (TaskRef(name="iris", version="1", schema_hash=schema), "ok", "as the run r1 wants it"),
        (TaskRef(name="iris", version="2", schema_hash=schema), "failed", "wants version 2"),
        (TaskRef(name="iris", version="1", schema_hash="ab" * 32), "failed", "other names or shapes"),
        (TaskRef(name="digits", version="1", schema_hash=schema), "warning", "trains another task, digits"),
    ):
        other = device(tmp_path, run=wanted)
        other.probe = one.probe
        finding = await try_task(other)
        assert finding.level == level
        assert words in finding.found
    bounded = device(tmp_path, trainer={"memory_limit": "20 MB", "nice": 0})
    bounded.probe = one.probe
    finding = await look_at_memory(bounded)
    assert finding.level == "failed"
    assert "memory_limit allows 20 MB" in finding.found


@pytest.mark.parametrize(
    ("code", "words", "mend"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')",
            "not installed",
            "fedmq[trainer]",
        ),
        (
            "raise OSError('libtorch.so: invalid ELF header')",
            "libtorch.so: invalid ELF header",
            "install PyTorch anew",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL", "built for a newer processor"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", "free some memory"),
        ("import os; os._exit(7)", "code 7", "fedmq agent try"),
        ("import sys; sys.exit('half a package')", "half a package", "fedmq agent try"),
        ("__version__ = '9'", "no attribute 'arange'", "install PyTorch anew"),
    ],
)
async def test_a_torch_that_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str, mend: str
) -> None:
    pretend(tmp_path, monkeypatch, code)
    found = await examined(device(tmp_path))
    assert found["torch"].level == "failed"
    assert words in found["torch"].found
    assert mend in found["torch"].mend
    assert found["task"].level == found["data"].level == "skipped"


async def test_a_torch_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, "import signal; signal.pause()")
    monkeypatch.setattr("fedmq_edge_agent.examining.training.CHILD_S", 1.0)
    found = await examined(device(tmp_path))
    assert found["torch"].level == "failed"
    assert "did not end within 1 s" in found["torch"].found


async def test_data_that_hang_are_not_blamed_on_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are processes left that a loader has started."""
    child = tmp_path / "child"
    code = f"""import signal
import subprocess
import torch
from fedmq import Task
def load_data(device):
    child = subprocess.Popen(["sleep", "600"])
    open({str(child)!r}, "w").write(str(child.pid))
    signal.pause()
task = Task(name="t", model=lambda: torch.nn.Linear(4, 1), load_data=load_data)
"""
    (tmp_path / "task.py").write_text(code)
    communicate = asyncio.subprocess.Process.communicate

    async def until_it_hangs(process: asyncio.subprocess.Process, said: bytes) -> tuple[bytes, bytes]:
        ending = asyncio.create_task(communicate(process, said))
        try:
            while not (child.exists() and child.read_text()):  # noqa: ASYNC110 - a file that another writes
                await asyncio.sleep(0.05)
            raise TimeoutError
        finally:
            ending.cancel()

    monkeypatch.setattr(asyncio.subprocess.Process, "communicate", until_it_hangs)
    found = await examined(device(tmp_path, task=str(tmp_path / "task.py")))
    assert (found["torch"].level, found["task"].level) == ("ok", "ok")
    assert found["data"].level == "failed"
    assert "did not end within" in found["data"].found
    async with asyncio.timeout(60):
        while start_of(int(child.read_text())) is not None:  # noqa: ASYNC110 - of the kernel's
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("code", "check", "words"),
    [
        (None, "task", "there is no task file"),
        ("import nothing_of_the_kind\n", "task", "install nothing_of_the_kind"),
        ("def load_data(device):\n    raise FileNotFoundError('letters')\n", "data", "letters"),
        ("def load_data(device):\n    return torch.zeros(0, 4), torch.zeros(0)\n", "data", "no examples"),
    ],
)
async def test_a_task_or_data_that_do_not_open(
    tmp_path: Path, code: str | None, check: str, words: str
) -> None:
    file = tmp_path / "task.py"
    if code is not None and check == "data":
        code = f"""import torch
from fedmq import Task
{code}
print("noise that must not disturb")
task = Task(name="t", model=lambda: torch.nn.Linear(4, 1), load_data=load_data)
"""
    if code is not None:
        file.write_text(code)
    found = await examined(device(tmp_path, task=str(file)))
    assert found["torch"].level == "ok"
    assert found[check].level == "failed"
    assert words in found[check].found
    assert found[check].mend
