"""The tasks that come along: their sizes, and that held-out data stay held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.tasks import BUILT_IN
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.host import Host
from fedmq_edge_agent.trainer.loading import load_task
from fedmq_edge_agent.trainer.opened import open_task

SIZES = {"digits": (301_066, 1438, 359), "iris": (1_315, 120, 30), "breast-cancer": (1_058, 456, 113)}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_sizes(name: str) -> None:
    num_parameters, num_train, num_test = SIZES[name]
    central = open_task(BUILT_IN[name], {}, "coordinator")
    assert central.task.name == name
    assert central.schema.num_parameters == central.schema.size == num_parameters
    assert central.test_data is not None
    assert central.test_data.count == num_test
    parts = [open_task(BUILT_IN[name], {"partition_id": i, "num_partitions": 5}, "device") for i in range(5)]
    assert sum(part.train_data.count for part in parts if part.train_data) == num_train
    assert not any(part.test_data for part in parts)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_no_held_out_example_is_trained_on(name: str, kind: str) -> None:
    held_out = rows(open_task(BUILT_IN[name], {}, "coordinator").test_data)
    for index in range(3):
        settings = {"partition_id": index, "num_partitions": 3, "partition": kind, "test_fraction": 0.25}
        device = open_task(BUILT_IN[name], settings, "device")
        mine, own_test = rows(device.train_data), rows(device.test_data)
        # the data sets themselves hold a pair of equal flowers
        assert len(mine & held_out) <= 1
        assert len(mine & own_test) <= 1
        assert len(own_test) == pytest.approx(0.25 * (len(mine) + len(own_test)), abs=1.5)


def rows(data: Any) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(data.raw[0])}


def test_a_wrong_test_fraction_is_told() -> None:
    with pytest.raises(TrainerError, match="test_fraction = 2"):
        open_task(BUILT_IN["iris"], {"test_fraction": 2}, "device")


def test_a_wrong_partition_is_told() -> None:
    with pytest.raises(TrainerError, match="there is no partition 'even'"):
        open_task(BUILT_IN["iris"], {"partition": "even"}, "device")


@pytest.mark.parametrize(("name", "least"), [("digits", 0.95), ("iris", 0.96), ("breast-cancer", 0.95)])
def test_the_tasks_can_be_learned(name: str, least: float) -> None:
    epochs = 20
    host = Host()
    train = {"batch_size": 32, "lr": 0.05, "momentum": 0.9}
    assert host.handle(
        {"id": 1, "op": "open", "task": BUILT_IN[name], "settings": {}, "role": "coordinator"}
    )["ok"]
    request = {
        "id": 2,
        "op": "centralised",
        "epochs": epochs,
        "train": train,
        "seed": 1,
        "evaluate_every": epochs,
    }
    assert host.handle(request)["accuracy"][-1] >= least


def test_a_task_is_found_by_its_files_path_too() -> None:
    path = Path(load_task(BUILT_IN["digits"]).load_data.__code__.co_filename)
    assert load_task(str(path)).name == "digits"
