"""A few real devices, each a process on a real broker, and the same fleet in virtual time: the bytes of a round."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedmq.simulation.fleet.distributions import parse
from fedmq.simulation.fleet.links import parse_link
from fedmq.simulation.fleet.plan import Plan
from fedmq.simulation.fleet.run import simulate
from fedmq_coordinator.core.settings import RunSettings
from tests.fedmq.command_line import CommandLine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_round_moves_as_many_bytes_as_with_real_devices(tmp_path: Path) -> None:
    fedmq = CommandLine(tmp_path)
    command = ["demo", "--devices", "3", "--rounds", "12", "--task", "breast-cancer", "--seed", "1", "--json"]
    command += ["--set", "selection.deadline_factor=0"]  # a machine that stalls makes no straggler
    done = fedmq.run(*command, timeout_s=400.0)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    plan = Plan(
        3,
        RunSettings.model_validate(report["settings"]["run"]),
        task="breast_cancer",
        hidden=32,
        examples=152,
        compute=parse("0.05"),
        network=(parse_link("ethernet"),),
        seed=1,
    )
    found = simulate(plan, "sync")
    assert found.counted == sum(version["participants"] for version in report["rounds"])
    steady = slice(
        2, 11
    )  # the first rounds have presence and snapshots among them, the last one the run's end
    for way in ("up", "down"):
        total = np.array([getattr(version, f"{way}_bytes") for version in found.versions])
        real = [version[f"bytes_{way}"] for version in report["rounds"]]
        assert np.diff(total)[steady].mean() == pytest.approx(np.median(real[steady]), rel=0.06)
