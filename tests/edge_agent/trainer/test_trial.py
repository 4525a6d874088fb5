"""One round without a broker tells what it costs."""

from __future__ import annotations

import pytest

from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.trial import Group, try_task
from fedmq_protocol.messages import TrainSettings, UploadSettings
from tests.edge_agent.trainer.asking import WriteTask, task_text

UPLOAD = UploadSettings(codec="topk-log4", density=0.05, first_density=0.05)


def test_a_trial_says_what_a_round_costs() -> None:
    trial = try_task("fedmq.tasks.digits", {"num_partitions": 10}, TrainSettings(local_epochs=5), UPLOAD)
    assert (trial.name, trial.num_parameters, trial.num_examples) == ("digits", 301_066, 144)
    assert trial.groups == {"parameter": Group(6, 301_066)}
    assert trial.float32_bytes == 1_204_264  # the figure that peers send, each way
    assert trial.float32_bytes / trial.update_bytes > 50
    assert 3.9 < trial.float32_bytes / trial.snapshot_bytes < 4.0
    assert trial.evaluated_on == "central"
    assert trial.after.loss < trial.before.loss
    assert trial.after.metrics["accuracy"] > trial.before.metrics["accuracy"]
    assert trial.trained_on == 144
    assert 1e8 < trial.peak_bytes < 2e9
    assert min(trial.open_s, trial.train_s, trial.encode_s) > 0


def test_without_held_out_data_it_measures_what_it_has(write_task: WriteTask) -> None:
    trial = try_task(write_task(task_text()), {}, TrainSettings(), UPLOAD)
    assert trial.evaluated_on == "train"
    assert trial.before.num_examples == 40


def test_a_broken_task_is_told_in_one_line(write_task: WriteTask) -> None:
    with pytest.raises(TrainerError, match=r"ZeroDivisionError: division by zero \(.*mytask\.py:\d+\)"):
        try_task(write_task(task_text(extra="1 / 0")), {}, TrainSettings(), UPLOAD)
