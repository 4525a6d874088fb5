"""The examples: their files are read as they stand, and they reach what their README promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedmq.tables import CoordinatorTable, DeviceTable, FederationTable, read
from fedmq_coordinator.core.settings import RunSettings
from fedmq_edge_agent.trainer.opened import open_task
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.messages import TrainSettings
from tests.fedmq.federation_in_process import accuracies

EXAMPLES = Path(__file__).parents[2] / "examples"


def device(name: str) -> DeviceTable:
    return read(EXAMPLES / name, environ={}).table("device", DeviceTable)


def run_of(name: str) -> RunSettings:
    return read(EXAMPLES / name / "fed.toml", environ={}).table("run", RunSettings)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The letters' pictures, drawn into a folder of this test's."""
    out = tmp_path_factory.mktemp("letters")
    code = "import sys, pathlib, draw; draw.main(pathlib.Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=EXAMPLES / "letters", check=True, capture_output=True
    )
    return out


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_configuration_is_read(path: Path) -> None:
    configuration = read(path, environ={})
    assert configuration.table("federation", FederationTable).name == path.parent.name
    assert configuration.table("broker", BrokerSettings).url == "mqtt://127.0.0.1:1883"
    configuration.table("run", RunSettings)
    configuration.table("coordinator", CoordinatorTable)
    table = configuration.table("device", DeviceTable)
    if path.name != "fed.toml":
        assert table.id
        assert Path(table.task or "").is_file()
        folder = table.data.get("folder")
        assert folder is None or Path(folder).parent == path.parent / "data"


def test_the_smallest_task_has_fewer_than_thirty_lines() -> None:
    assert len((EXAMPLES / "digits" / "digits.py").read_text().splitlines()) < 30


def test_digits_learns_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "digits"))
    for name, metrics in (("digits.py", {"accuracy"}), ("own_training.py", {"accuracy", "top_2_accuracy"})):
        path = str(EXAMPLES / "digits" / name)
        torch.manual_seed(0)  # of the first weights
        opened = open_task(path, {"partition_id": 1, "num_partitions": 2}, "device")
        central = open_task(path, {}, "coordinator").test_data
        assert opened.train_data is not None
        assert central is not None
        assert (opened.train_data.count, central.count) == (719, 359)
        lr = 0.05 if name == "digits.py" else 0.005
        opened.train(TrainSettings(local_epochs=5, lr=lr), seed=1)
        _, _, measured = opened.evaluate(central)
        assert set(measured) == metrics
        assert measured["accuracy"] > 0.85


@pytest.mark.parametrize("seed", range(4))
def test_alice_and_bob_reach_what_is_promised(seed: int, tmp_path: Path) -> None:
    who = [device("iris/alice.toml"), device("iris/bob.toml")]
    data = [one.data for one in who]
    assert who[0].task is not None
    reached = accuracies(who[0].task, data, run_of("iris"), tmp_path, seed=seed)
    assert reached[-1] >= 0.96


def test_letters_has_250_pictures_a_device(letters: Path) -> None:
    assert sorted(path.name for path in letters.iterdir()) == ["client-1", "client-2", "client-3", "test"]
    for number in (1, 2, 3):
        assert len(list((letters / f"client-{number}").glob("[A-J]/*.png"))) == 250
    opened = open_task(
        str(EXAMPLES / "letters" / "letters.py"), {"folder": str(letters / "client-2")}, "device"
    )
    assert opened.train_data is not None
    assert opened.test_data is not None
    assert (opened.train_data.count, opened.test_data.count) == (225, 25)


@pytest.mark.slow
def test_letters_reaches_what_is_promised(letters: Path, tmp_path: Path) -> None:
    data = [
        {**device(f"letters/device-{n}.toml").data, "folder": str(letters / f"client-{n}")} for n in (1, 2, 3)
    ]
    task = str(EXAMPLES / "letters" / "letters.py")
    central = {"folder": str(letters / "test")}
    assert accuracies(task, data, run_of("letters"), tmp_path, seed=0, central=central)[-1] > 0.9


def test_a_folder_without_pictures_says_what_makes_some(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"`python draw\.py` makes some") as caught:
        open_task(str(EXAMPLES / "letters" / "letters.py"), {"folder": str(tmp_path)}, "device")
    assert getattr(caught.value, "code", None) == "no-data"
