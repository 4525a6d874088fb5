"""`fedmq agent`: one device. Starting it imports neither rich nor PyTorch nor NumPy: the supervisor stays small."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmq.commands.options import Log, broker_option, config_option, federation_option, log_options
from fedmq.extras import require
from fedmq.tables import DeviceTable, agent_settings, parse_sets, read, task_place
from fedmq.verbs import Verbs

if TYPE_CHECKING:
    from fedmq_edge_agent.trainer.trial import Measured, Trial


@click.command(
    cls=Verbs,
    verbs={
        "start": ("fedmq.commands.agent:start", "Be a device until Ctrl-C."),
        "doctor": (
            "fedmq.commands.doctor:agent_doctor",
            "Say what is wrong with this device, and how to mend it.",
        ),
        "status": ("fedmq.commands.status:status", "Say how this board's agent stands, for scripts too."),
        "try": ("fedmq.commands.agent:try_", "Train a task for one round here, without a broker."),
    },
)
def agent() -> None:
    """Start a device's agent, see how it stands, examine it, or try out a task without a federation."""


@click.command()
@config_option
@broker_option
@federation_option
@click.option("--id", "device", metavar="NAME", help="The device's name; unique in the federation.")
@click.option("--task", help="The task: a Python file, or an installed module.")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Key, model, outbox; default: state/<id>.")
@click.option(
    "--data", "pairs", multiple=True, metavar="KEY=VALUE", help="For the loader: --data partition_id=0"
)
@log_options
def start(
    config_path: Path | None,
    broker_url: str | None,
    federation: str | None,
    device: str | None,
    task: str | None,
    state_dir: Path | None,
    pairs: tuple[str, ...],
    log: Log,
) -> None:
    """Be a device until Ctrl-C. Whatever it has not delivered yet is kept for the next start."""
    from fedmq_edge_agent.shell.main import run_agent_forever

    configuration = read(
        config_path,
        flags={
            "broker.url": ("--broker", broker_url),
            "federation.name": ("--federation", federation),
            "device.id": ("--id", device),
            "device.task": ("--task", task),
            "device.state_dir": ("--state-dir", state_dir),
        },
        sets=parse_sets(pairs, table="device.data"),
    )
    settings = agent_settings(configuration)
    log.begin(device=settings.id)
    run_agent_forever(settings)


@click.command("try")
@click.argument("task")
@config_option
@click.option(
    "--data", "pairs", multiple=True, metavar="KEY=VALUE", help="For the loader: --data folder=letters"
)
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Of a run: --set train.local_epochs=2"
)
def try_(task: str, config_path: Path | None, pairs: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Train TASK for one round here, without a broker, and say what that costs.

    TASK is a Python file, or an installed module. [device.data] and [run] of the file hold here as they would there.
    """
    require("torch", "trainer")
    from fedmq_coordinator.core.settings import RunSettings
    from fedmq_edge_agent.trainer.trial import try_task

    configuration = read(
        config_path, sets={**parse_sets(pairs, table="device.data"), **parse_sets(sets, table="run")}
    )
    run = configuration.table("run", RunSettings)
    data = configuration.table("device", DeviceTable).data
    trial = try_task(task_place(task), data, run.train, run.compression.upload, seed=run.seed)
    for name, text in _described(trial):
        click.echo(f"{name:<14} {text}")


def _described(trial: Trial) -> list[tuple[str, str]]:
    from fedmq.report.sizes import bytes_text

    roles = ", ".join(
        f"{group.elements:,} in {group.tensors} {role}{'' if group.tensors == 1 else 's'}"
        for role, group in trial.groups.items()
    )
    where = {
        "test": "this device's test data",
        "central": "the central test data",
        "train": "the training data",
    }
    smaller = trial.float32_bytes / max(1, trial.update_bytes)
    return [
        ("task", f"{trial.name} {trial.version}, schema {trial.schema_hash[:12]}"),
        ("model", roles),
        ("data", f"{trial.num_examples} examples, {trial.num_test_examples} of its own to test on"),
        ("evaluated on", where[trial.evaluated_on]),
        ("before", _measured(trial.before)),
        ("after", _measured(trial.after)),
        (
            "time",
            f"{trial.open_s:.1f} s to open, {trial.train_s:.2f} s to train, {trial.encode_s:.3f} s to encode",
        ),
        ("memory", f"{bytes_text(trial.peak_bytes)} at most, in the trainer"),
        ("download", f"{bytes_text(trial.snapshot_bytes)} at first, then deltas"),
        ("upload", f"{bytes_text(trial.update_bytes)} a round, 1/{smaller:.0f} of float32"),
    ]


def _measured(measured: Measured) -> str:
    metrics = "".join(f", {name} {value:.4f}" for name, value in measured.metrics.items())
    return f"loss {measured.loss:.4f}{metrics}"
