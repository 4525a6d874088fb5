"""`fedmq demo` as its users run it: a federation of real processes, and what is left of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from fedmq_broker.runner import RunningBroker
from tests.broker_fixtures import Connect, silence
from tests.fedmq.command_line import CommandLine, one_line

PATIENT = ("--set", "selection.deadline_factor=0")
"""A round waits for all: a machine that stalls for a second makes no straggler."""
SMALL = ("demo", "--devices", "3", "--rounds", "3", "--task", "iris", *PATIENT)
WITHIN_S = 400.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Ids(HTMLParser):
    """Collects ids, and whatever a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value is not None:
                self.ids.append(value)
            if name in {"src", "href", "xlink:href"} and value is not None and not value.startswith("#"):
                self.elsewhere.append(value)


def report_of(result: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    """The report that a demo left, after a look at the files beside it."""
    assert result.returncode == 0, result.stderr
    tensors = load_file(out / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "0.weight": (32, 4),
        "0.bias": (32,),
        "2.weight": (32, 32),
        "2.bias": (32,),
        "4.weight": (3, 32),
        "4.bias": (3,),
    }
    page = Ids()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    assert page.elsewhere == []
    assert len(page.ids) == len(set(page.ids))
    assert {"learning", "traffic", "staleness", "timeline"} <= set(page.ids)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


@pytest.mark.parametrize("mode", ["sync", "fedbuff"])
def test_a_small_demo_from_end_to_end(fedmq: CommandLine, mode: str) -> None:
    result = fedmq.run(*SMALL, "--mode", mode, timeout_s=WITHIN_S)
    report = report_of(result, fedmq.folder / "fedmq-demo")
    assert fedmq.all_gone()
    assert list(fedmq.temporary.iterdir()) == []
    assert len(report["accuracy"]) == len(report["loss"]) == len(report["round_seconds"]) == 3
    assert all(0 <= value <= 1 for value in report["accuracy"])
    assert 0.6 < report["accuracy_centralised"] <= 1
    assert report["accuracy_gap"] == pytest.approx(report["accuracy_centralised"] - report["accuracy_final"])
    counted = sum(report["staleness"].values())
    assert counted == len(report["updates"])
    parameters = 4 * 32 + 32 + 32 * 32 + 32 + 32 * 3 + 3
    assert report["num_parameters"] == parameters
    assert report["bytes_float32"] == 2 * 4 * parameters * counted
    measured = report["bytes_up"] + report["bytes_down"]
    assert report["compression_ratio"] == pytest.approx(report["bytes_float32"] / measured)
    assert measured == sum(row["bytes_up"] + row["bytes_down"] for row in report["rounds"])
    assert 0 < report["participation_rate"] <= 1
    assert 0 < report["time_to_first_round_s"] < WITHIN_S
    assert [device["id"] for device in report["devices"]] == ["dev-1", "dev-2", "dev-3"]
    assert report["settings"]["run"]["mode"] == mode
    assert set(report["versions"]) >= {"fedmq", "python", "torch", "broker"}
    assert report["machine"]["cores"] >= 1
    if mode == "sync":
        assert report["staleness"] == {"0": 9}
        assert report["participation_rate"] == 1
    for name in ("accuracy", "gap", "on the wire", "participation", "report"):
        assert f"\n  {name} " in result.stdout


def test_json_is_alone_on_stdout(fedmq: CommandLine) -> None:
    result = fedmq.run(
        *SMALL, "--rounds", "1", "--json", "--out", "there", "--compression", "none", timeout_s=WITHIN_S
    )
    assert json.loads(result.stdout) == report_of(result, fedmq.folder / "there")
    run = json.loads(result.stdout)["settings"]["run"]
    assert run["compression"]["up"] == run["compression"]["down"] == "float32"
    assert "loading PyTorch" in result.stderr


def test_a_second_demo_into_the_same_folder_works_without_mosquitto(fedmq: CommandLine) -> None:
    """The embedded broker plays when there is no other; what is in the folder from before is replaced."""
    (fedmq.folder / "fedmq-demo").mkdir()
    (fedmq.folder / "fedmq-demo/report.json").write_text("{}", encoding="utf-8")
    result = fedmq.run(*SMALL, "--rounds", "1", "--broker", "embedded", timeout_s=WITHIN_S)
    report = report_of(result, fedmq.folder / "fedmq-demo")
    assert report["versions"]["broker"] == "the embedded broker"


def test_devices_that_vanish_and_devices_that_are_slow(fedmq: CommandLine) -> None:
    options = ["--devices", "4", "--rounds", "60", "--seed", "3"]
    options += ["--dropouts", "1", "--stragglers", "1", "--straggler-delay", "1"]
    result = fedmq.run("demo", "--task", "iris", *options, timeout_s=WITHIN_S)
    report = report_of(result, fedmq.folder / "fedmq-demo")
    assert fedmq.all_gone()
    [killed] = [device for device in report["devices"] if device["killed_s"] is not None]
    assert f"{killed['id']} was killed in round " in result.stdout
    assert killed["updates"] < 60
    assert [device["id"] for device in report["devices"] if device["slow_s"]] == ["dev-4"]
    slow = [update for update in report["updates"] if update["device"] == "dev-4"]
    assert all(update["end_s"] - update["start_s"] >= 1 for update in slow)
    assert report["state"] == "finished"


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("starting the broker", signal.SIGINT),
        ("starting the coordinator", signal.SIGINT),
        ("loading PyTorch", signal.SIGINT),
        ("round   1", signal.SIGINT),
        ("fetching", signal.SIGINT),
        ("loading PyTorch", signal.SIGTERM),
        ("round   1", signal.SIGHUP),
    ],
)
def test_a_signal_at_any_moment_leaves_nothing_behind(
    fedmq: CommandLine, moment: str, number: signal.Signals
) -> None:
    rounds = "8" if moment == "fetching" else "1000"  # so many that the signal does not come too late
    for _ in range(5):
        with fedmq.start("demo", "--devices", "3", "--rounds", rounds, "--task", "iris") as demo:
            assert demo.stdout is not None
            assert any(moment in line for line in demo.stdout)
            demo.send_signal(number)
            _, said = demo.communicate(timeout=60)
        if moment != "fetching" or not (fedmq.folder / "fedmq-demo" / "report.json").exists():
            break
        shutil.rmtree(fedmq.folder / "fedmq-demo")  # it was over before the signal came: once more
    assert demo.returncode == 128 + number
    assert said == "fedmq: interrupted; everything has been ended\n"
    assert fedmq.all_gone()
    assert list(fedmq.temporary.iterdir()) == []
    assert not (fedmq.folder / "fedmq-demo").exists()


@pytest.mark.parametrize("moment", ["starting the coordinator", "loading PyTorch", "round   1"])
def test_not_even_a_kill_leaves_processes_behind(fedmq: CommandLine, moment: str) -> None:
    with fedmq.start("demo", "--devices", "3", "--rounds", "1000", "--task", "iris") as demo:
        assert demo.stdout is not None
        assert any(moment in line for line in demo.stdout)
        demo.kill()
        demo.communicate(timeout=60)
    assert fedmq.all_gone()


def test_a_part_that_dies_ends_the_demo_with_a_line(fedmq: CommandLine) -> None:
    with fedmq.start("demo", "--devices", "3", "--rounds", "1000", "--task", "iris") as demo:
        assert demo.stdout is not None
        assert any("round   1" in line for line in demo.stdout)
        [coordinator] = [process for process in fedmq.alive() if "coordinator" in process.cmdline()[5:6]]
        coordinator.kill()
        said, complaint = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "the coordinator" in one_line(subprocess.CompletedProcess([], 1, "", complaint))
    assert "Traceback" not in said
    assert fedmq.all_gone()


@pytest.mark.mosquitto
async def test_an_outside_broker_is_left_as_it_was(
    fedmq: CommandLine, mosquitto: RunningBroker, connect: Connect
) -> None:
    options = ("--rounds", "1", "--broker", mosquitto.url)
    result = await asyncio.to_thread(fedmq.run, *SMALL, *options, timeout_s=WITHIN_S)
    report = report_of(result, fedmq.folder / "fedmq-demo")
    assert report["versions"]["broker"] == "outside broker"
    assert mosquitto.url not in json.dumps(report)
    connection = await connect(mosquitto.url, "looker")
    await connection.subscribe(["fedmq/#", "marker"])
    left = await silence(connection.events(), lambda: connection.publish("marker", b"!"), "marker")
    assert [message.topic for message in left] == []
