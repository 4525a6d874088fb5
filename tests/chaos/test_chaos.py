"""A short run on real processes; and that the reckoning at its end finds what is wrong, where something is."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmq_coordinator.core.facts import UpdateAccepted
from fedmq_coordinator.shell.store import Journal
from fedmq_edge_agent.core.state import AgentState, dump_state, load_index, load_state
from tests.broker_fixtures import require_mosquitto
from tests.chaos.audit import Audit
from tests.chaos.performance import Outcome, Plan, audit_of, perform
from tests.chaos.stage import FEDERATION, ROOT, RUN
from tests.chaos.witness import Name

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """A run with a few kills, and what it left."""
    require_mosquitto()
    folder = tmp_path_factory.mktemp("chaos") / "run"
    outcome = asyncio.run(perform(Plan(kills=5, seed=4, devices=2, pace_s=0.25, train_s=0.2), folder))
    yield outcome
    shutil.rmtree(folder)


def test_a_few_kills_cost_nothing(played: Outcome) -> None:
    assert played.faults == []
    assert played.figures["kills"] >= 5
    assert played.figures["accepted"] > 0
    assert played.figures["left_over"] == []


def test_neither_do_full_disks_and_pulled_cables(tmp_path: Path) -> None:
    """In namespaces of its own, where the machine lends them."""
    require_mosquitto()
    figures = tmp_path / "figures.json"
    options = ["--kills", "3", "--seed", "3", "--devices", "2", "--pace", "0.25", "--train-s", "0.2"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *options, "--json", str(figures)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if not json.loads(figures.read_text())["namespaces"]:
        pytest.skip("this machine lends no namespaces: neither cables nor disks were tried")


# ------------------------------------------------------------------------------------- does the reckoning find it?


@dataclass
class Scene:
    """A copy of what the run left, to be tampered with."""

    audit: Audit
    device: str

    @property
    def folder(self) -> Path:
        return self.audit.devices[self.device]

    def rewrite(self, change: Callable[[AgentState], AgentState]) -> None:
        path = self.folder / "state"
        path.write_bytes(dump_state(change(load_state(path.read_bytes()))))


@pytest.fixture
def scene(played: Outcome, tmp_path: Path) -> Scene:
    copied = tmp_path / "copy"
    shutil.copytree(played.stage.folder, copied, ignore=shutil.ignore_patterns("*.socket"))
    stage = copy.copy(played.stage)
    stage.folder, stage.witness = copied, copy.deepcopy(played.stage.witness)
    scene = Scene(audit_of(stage), "dev-1")
    assert copy.deepcopy(scene.audit).carry_out().faults == []
    return scene


def faults(scene: Scene) -> str:
    return "\n".join(scene.audit.carry_out().faults)


def test_an_update_that_counts_twice_is_found(scene: Scene) -> None:
    journal = Journal.open(scene.audit.state_dir, federation=FEDERATION)
    journal.append([next(fact for fact in journal.read() if isinstance(fact, UpdateAccepted))])
    journal.close()
    assert "settled twice" in faults(scene)


def test_a_receipt_without_a_fact_is_found(scene: Scene) -> None:
    scene.audit.witness.said["dev-1", RUN, 9_999].add(("accepted", "", "keep"))
    assert "has a receipt, and is not in the journal" in faults(scene)


def accepted(scene: Scene) -> list[Name]:
    """The updates that were accepted, in the order of their receipts."""
    return [
        name
        for name, said in scene.audit.witness.said.items()
        if {word for word, _, _ in said} == {"accepted"}
    ]


def test_two_different_receipts_are_found(scene: Scene) -> None:
    name = accepted(scene)[0]
    scene.audit.witness.said[name].add(("rejected", "no-lease", "restore"))
    assert "different receipts" in faults(scene)


def test_an_update_that_nobody_sent_is_found(scene: Scene) -> None:
    del scene.audit.witness.sent[
        accepted(scene)[-1]
    ]  # one that counts: the last that was sent may still wait
    assert "nobody heard it being sent" in faults(scene)


def test_another_payload_in_the_model_is_found(scene: Scene) -> None:
    names = accepted(scene)
    # One device's own sum would stay the same, and so would that of one version.
    other = next(name for name in reversed(names) if name[0] != names[0][0])
    first, second = (scene.audit.witness.sent[name] for name in (names[0], other))
    first.payload, second.payload = second.payload, first.payload
    text = faults(scene)
    assert "is not the way to what the accepted updates add up to" in text
    assert "differ by" in text


def test_a_committed_update_that_is_gone_is_found(scene: Scene) -> None:
    scene.rewrite(lambda state: state.with_run(RUN, counter=state.runs[RUN].counter + 1))
    assert "gone without having been sent" in faults(scene)


def test_an_update_dropped_without_a_receipt_is_found(scene: Scene) -> None:
    name = next(name for name in scene.audit.witness.delivered if name[0] == "dev-1")
    del scene.audit.witness.delivered[name]
    assert "no receipt had reached the device" in faults(scene)


def test_a_lost_residual_is_found(scene: Scene) -> None:
    scene.rewrite(lambda state: state.with_run(RUN, residual_file=None))
    assert "what it trained and what became of it differ" in faults(scene)


def test_a_changed_residual_is_found(scene: Scene) -> None:
    state = load_state((scene.folder / "state").read_bytes())
    path = scene.folder / "runs" / RUN / str(state.runs[RUN].residual_file)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    head = len(b"fedmq residual 2\n")
    data[head : head + 32] = hashlib.sha256(data[head + 32 :]).digest()
    path.write_bytes(data)
    text = faults(scene)
    assert "differ by" in text
    assert "torn" not in text


def test_training_on_other_bits_is_found(scene: Scene) -> None:
    path = scene.audit.ledgers["dev-1"]
    tickets = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(f"{ticket} {'00' * 32}\n" for ticket, _ in tickets))
    assert "on an unknown version" in faults(scene)


def test_another_model_on_a_device_is_found(scene: Scene) -> None:
    folder = scene.folder / "runs" / RUN
    path = folder / load_index((folder / "model.idx").read_bytes()).links[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "holds another version" in faults(scene)
