"""The parts of a demo that need no federation: options, dropouts, processes."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from pathlib import Path

import pytest

from fedmq.demo.faults import Reaper, plan_dropouts
from fedmq.demo.options import DemoOptions
from fedmq.demo.processes import ProcessEndedError, Processes
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.views import DeviceView

DEVICES = [f"dev-{n}" for n in range(1, 11)]


@pytest.mark.parametrize("mode", ["sync", "fedasync", "fedbuff"])
@pytest.mark.parametrize("task", ["digits", "iris", "breast-cancer"])
@pytest.mark.parametrize("compression", ["default", "none"])
def test_options_make_settings_that_a_run_takes(mode: str, task: str, compression: str) -> None:
    options = DemoOptions(mode=mode, task=task, compression=compression, density=0.1, target=0.9, seed=7)
    run = RunSettings.model_validate(options.run_settings())
    assert (run.mode, run.seed, run.target) == (mode, 7, 0.9)
    assert run.compression.density == (1.0 if compression == "none" else 0.1)


def test_every_mode_does_about_the_same_work_by_default() -> None:
    assert DemoOptions().num_rounds == 20
    assert DemoOptions(mode="fedasync").num_rounds == 200
    assert DemoOptions(mode="fedbuff").num_rounds == 40  # steps of half of the ten devices
    assert DemoOptions(mode="fedbuff", rounds=7).num_rounds == 7


def test_two_devices_with_flowers_are_called_alice_and_bob() -> None:
    assert DemoOptions(task="iris", devices=2).device_ids == ["alice", "bob"]
    assert DemoOptions(devices=3, stragglers=2).slow_ids == ["dev-2", "dev-3"]
    assert DemoOptions(devices=3).slow_ids == []


def test_the_same_seed_kills_the_same_devices_in_the_same_rounds() -> None:
    plan = plan_dropouts(DEVICES, 3, rounds=20, seed=5)
    assert plan == plan_dropouts(DEVICES, 3, rounds=20, seed=5)
    assert plan != plan_dropouts(DEVICES, 3, rounds=20, seed=6)
    assert len({dropout.device for dropout in plan}) == 3
    assert all(2 <= dropout.round <= 15 and 0 <= dropout.fraction < 1 for dropout in plan)


def view(device: str, lease_age_s: float | None) -> DeviceView:
    state = "idle" if lease_age_s is None else "training"
    return DeviceView(device=device, state=state, since_s=1, task_time_s=1.0, lease_age_s=lease_age_s)


def test_a_device_vanishes_in_the_middle_of_its_task_and_only_once() -> None:
    [dropout] = plan_dropouts(["dev-1"], 1, rounds=20, seed=0)
    reaper = Reaper([dropout])
    before, after = dropout.fraction * 0.9, dropout.fraction * 1.1
    assert reaper.due(dropout.round - 1, [view("dev-1", after)], now=0) == []
    assert reaper.due(dropout.round, [view("dev-1", None)], now=0) == []
    assert reaper.due(dropout.round, [view("dev-1", before)], now=0) == []
    assert reaper.watches_closely
    [(found, _)] = reaper.due(dropout.round, [view("dev-1", after)], now=0)
    assert found == dropout
    assert reaper.due(dropout.round, [view("dev-1", after)], now=0) == []
    assert not reaper.watches_closely


def test_a_device_that_never_works_vanishes_all_the_same() -> None:
    [dropout] = plan_dropouts(["dev-1"], 1, rounds=20, seed=0)
    reaper = Reaper([dropout])
    assert reaper.due(dropout.round, [view("dev-1", None)], now=100) == []
    assert len(reaper.due(dropout.round, [view("dev-1", None)], now=111)) == 1


async def test_a_process_that_ends_by_itself_is_told_with_its_last_words(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    code = "import sys; print('hello'); sys.stderr.write('fedmq: the port is taken\\nand a second line\\n')"
    child = processes.start("coordinator", [sys.executable, "-c", code])
    await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessEndedError, match=r"^the coordinator has ended: the port is taken$"):
        processes.check()
    await processes.end_all()
    processes.check()


async def test_a_process_that_does_not_want_to_end_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmq.demo.processes.END_WITHIN_S", 0.2)
    code = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork();"
        "child and print(child, flush=True); time.sleep(600)"
    )
    processes = Processes(tmp_path)
    stubborn = processes.start("stubborn", [sys.executable, "-c", code], pipes=True)
    assert stubborn.process.stdout is not None
    grandchild = int(await asyncio.to_thread(stubborn.process.stdout.readline))
    handle = os.pidfd_open(grandchild)
    try:
        await processes.end_all()
        await asyncio.to_thread(_await_end, handle)
    finally:
        os.close(handle)
    assert stubborn.process.returncode == -9


def _await_end(handle: int) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    assert poll.poll(60_000)


def test_settings_in_the_environment_do_not_reach_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMQ_COORDINATOR__LISTEN", "0.0.0.0:1")
    monkeypatch.setenv("FEDMQ_DEBUG", "1")
    processes = Processes(tmp_path)
    code = "import os; print(sorted(name for name in os.environ if name.startswith('FEDMQ_')), os.environ['TMPDIR'])"
    child = processes.start("part", [sys.executable, "-c", code])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    text = child.log.read_text(encoding="utf-8")
    asyncio.run(processes.end_all())
    assert text == f"['FEDMQ_DEBUG'] {tmp_path}\n"
