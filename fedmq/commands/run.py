"""`fedmq run`: start, watch, list, stop and report runs. They talk to the coordinator on this machine."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmq.commands.options import config_option, json_option, printable, state_dir_option
from fedmq.extras import needs
from fedmq.tables import CoordinatorTable, parse_sets, read, task_place
from fedmq_protocol.errors import UsageError

if TYPE_CHECKING:
    from fedmq_coordinator.core.views import RunView
    from fedmq_coordinator.shell.client import Client

_WATCH_S = 0.5
_START_S = 20.0
_LOOK_S = 0.1


@click.group()
def run() -> None:
    """Start, watch, list, stop and report runs."""


def client_of(config_path: Path | None, state_dir: Path | None) -> Client:
    """The API of the coordinator that the settings name.

    Raises:
        UsageError: none is running there, or the extra is not installed.
    """
    with needs("coordinator"):
        from fedmq_coordinator.shell.client import Client, is_starting

    configuration = read(config_path, flags={"coordinator.state_dir": ("--state-dir", state_dir)})
    folder = configuration.table("coordinator", CoordinatorTable).state_dir
    if is_starting(folder):
        click.echo("the coordinator is starting", err=True)
        until = time.monotonic() + _START_S
        while is_starting(folder) and time.monotonic() < until:
            time.sleep(_LOOK_S)
    return Client(folder)


@run.command()
@click.argument("task")
@config_option
@state_dir_option
@click.option("--name", help="What the run is called; default: the task's name and the next number.")
@click.option(
    "--mode", type=click.Choice(["sync", "fedasync", "fedbuff"]), help="How updates are put together."
)
@click.option("--rounds", type=int, help="Rounds, or published versions where the mode is not sync.")
@click.option("--density", type=float, help="Share of the parameters in an update.")
@click.option("--target", type=float, help="End when the accuracy reaches this.")
@click.option("--seed", type=int, help="Of the first weights and all that is drawn.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="First weights: a .safetensors, or a state_dict in a .pt.",
)
@click.option(
    "--start",
    type=click.Choice(["auto", "seed", "snapshot"]),
    help="How the first weights come to the devices: drawn there from the seed, or sent.",
)
@click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Any setting of a run: --set train.lr=0.1"
)
@click.option("--watch", is_flag=True, help="Stay, print a line a round, and end when the run does.")
def start(  # noqa: PLR0913, PLR0917 - one argument an option
    task: str,
    config_path: Path | None,
    state_dir: Path | None,
    name: str | None,
    mode: str | None,
    rounds: int | None,
    density: float | None,
    target: float | None,
    seed: int | None,
    checkpoint: Path | None,
    start: str | None,
    pairs: tuple[str, ...],
    watch: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Queue a run of TASK: a Python file, an installed module, or one that comes along: digits, iris, breast-cancer.

    Settings are those of [run] in the file, variables, and flags; `fedmq config show` lists them.
    """
    with needs("coordinator"):
        from fedmq_coordinator.core.settings import RunSettings

    configuration = read(
        config_path,
        flags={
            "coordinator.state_dir": ("--state-dir", state_dir),
            "run.mode": ("--mode", mode),
            "run.rounds": ("--rounds", rounds),
            "run.compression.density": ("--density", density),
            "run.target": ("--target", target),
            "run.seed": ("--seed", seed),
            "run.compression.start": ("--start", start),
        },
        sets=parse_sets(pairs, table="run"),
    )
    settings = configuration.table("run", RunSettings).model_dump(mode="json", exclude_unset=True)
    if checkpoint is not None and not checkpoint.is_file():
        raise UsageError(f"there is no file {str(checkpoint)!r} to begin with")
    with client_of(config_path, state_dir) as client:
        started = client.start_run(task_place(task), name=name, settings=settings, checkpoint=checkpoint)
        click.echo(started)
        if watch:
            _watch(client, started)
        else:
            where = "" if config_path is None else f" --config {config_path}"
            click.echo(f"`fedmq run show {started}{where}` tells how it goes", err=True)


@run.command()
@click.argument("name", metavar="[RUN]", required=False)
@config_option
@state_dir_option
@json_option
def show(name: str | None, config_path: Path | None, state_dir: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Tell how a run goes and what it waits for, since when, until when; without RUN, the active or the last one."""
    with client_of(config_path, state_dir) as client:
        view = client.run(name or _current(client))
        if as_json:
            click.echo(view.model_dump_json(indent=2))
            return
        for line in _lines(view):
            click.echo(line)
        devices = client.devices()
        if devices:
            click.echo()
        for device in devices:
            held = "" if device.lease_age_s is None else f" for {device.lease_age_s:.1f} s"
            problem = f"  {printable(device.problem)}" if device.problem else ""
            click.echo(
                f"  {device.device:<16} {device.state}{held}, {device.updates} updates"
                f"{_moved(view.moved.get(device.device))}{problem}"
            )


@run.command()
@config_option
@state_dir_option
@json_option
def ls(config_path: Path | None, state_dir: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """List all runs, the oldest first."""
    with client_of(config_path, state_dir) as client:
        views = client.runs()
    if as_json:
        click.echo(json.dumps([view.model_dump(mode="json") for view in views], indent=2))
        return
    if not views:
        click.echo("no runs yet: `fedmq run start TASK` starts one", err=True)
        return
    click.echo(f"{'run':<24} {'state':<9} {'mode':<9} {'round':>11}  {'accuracy':>8}  task")
    for view in views:
        rounds = f"{view.round} of {view.settings.rounds}"
        accuracy = _accuracy(view)
        shown = "-" if accuracy is None else f"{accuracy:.1%}"
        click.echo(
            f"{view.run:<24} {view.state:<9} {view.settings.mode:<9} {rounds:>11}  {shown:>8}  "
            f"{view.task.name} {view.task.version}"
        )


@run.command()
@click.argument("name", metavar="[RUN]", required=False)
@config_option
@state_dir_option
def stop(name: str | None, config_path: Path | None, state_dir: Path | None) -> None:
    """End a run now; its versions stay. Without RUN, the active one."""
    with client_of(config_path, state_dir) as client:
        chosen = name or client.status().active_run
        if chosen is None:
            raise UsageError("no run is active; `fedmq run ls` lists them")
        view = client.stop_run(chosen)
        click.echo(f"{view.run} is {view.state} at {_progress(view)}")


@run.command()
@click.argument("name", metavar="RUN")
@config_option
@state_dir_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write to."
)
def report(name: str, config_path: Path | None, state_dir: Path | None, out: Path) -> None:
    """Write report.html and report.json of a run into a folder."""
    with needs("demo"):
        from fedmq.report.from_run import figures
        from fedmq.report.page import write
    with client_of(config_path, state_dir) as client:
        result = figures(client.report(name), client.devices())
    try:
        data, page = write(result, out)
    except OSError as error:
        raise UsageError(f"cannot write to {str(out)!r}: {error.strerror}") from None
    click.echo(f"{page}\n{data}")


@run.command()
@click.argument("name", metavar="[RUN]", required=False)
@config_option
@state_dir_option
@json_option
def traffic(name: str | None, config_path: Path | None, state_dir: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Tell how many bytes each device moved in each round, both ways, as its agent counted them on its socket.

    Without RUN, the active or the last one. An agent tells with its next update, so the last round may grow yet.
    """
    from fedmq.report.sizes import bytes_text

    with client_of(config_path, state_dir) as client:
        report = client.report(name or _current(client))
    if as_json:
        rounds = [{"round": row.round, "moved": row.moved} for row in report.rounds]
        click.echo(json.dumps({"run": report.run, "moved": report.totals.moved, "rounds": rounds}, indent=2))
        return
    if not report.totals.moved:
        click.echo("no device has told of any bytes yet", err=True)
        return
    click.echo(
        f"{'device':<16} {'up':>10} {'down':>10}   a round, median: {'up':>9} {'down':>9}   most, both ways"
    )
    for device in sorted(report.totals.moved):
        rows = [(row.round, *row.moved[device]) for row in report.rounds if device in row.moved]
        worst = max(rows, key=lambda row: row[1] + row[2], default=(0, 0, 0))
        up, down = report.totals.moved[device]
        click.echo(
            f"{device:<16} {bytes_text(up):>10} {bytes_text(down):>10}   {'':>16} "
            f"{bytes_text(statistics.median([row[1] for row in rows] or [0])):>9} "
            f"{bytes_text(statistics.median([row[2] for row in rows] or [0])):>9}"
            f"   {bytes_text(worst[1] + worst[2])} in round {worst[0]}"
        )
    click.echo(
        f"{'all':<16} {bytes_text(report.totals.bytes_up):>10} {bytes_text(report.totals.bytes_down):>10}"
    )


def _current(client: Client) -> str:
    status = client.status()
    chosen = status.active_run or next(iter(status.runs[-1:]), None)
    if chosen is None:
        raise UsageError("there are no runs yet: `fedmq run start TASK` starts one")
    return chosen


def _watch(client: Client, name: str) -> None:
    shown, waiting = 0, ""
    while True:
        view = _view(client, name)
        for done in view.evaluations[shown:]:
            metrics = "  ".join(f"{metric} {value:.4f}" for metric, value in done.metrics.items())
            click.echo(f"version {done.version:>4}  loss {done.loss:.4f}  {metrics}")
        shown = len(view.evaluations)
        if not view.version and view.waiting != waiting:
            waiting = view.waiting
            click.echo(f"waits for {waiting}", err=True)
        if view.state in {"finished", "stopped"}:
            click.echo(f"{view.state}: {view.end_reason}")
            return
        time.sleep(_WATCH_S)


def _view(client: Client, name: str) -> RunView:
    """How a run stands, however long its coordinator is away."""
    from fedmq_coordinator.shell.client import NoAnswerError, NoCoordinatorError

    try:
        return client.run(name)
    except (NoAnswerError, NoCoordinatorError):
        click.echo("the coordinator does not answer; waiting for it to come back", err=True)
    while True:
        time.sleep(_WATCH_S)
        with contextlib.suppress(NoAnswerError, NoCoordinatorError):
            client.find_again()
            return client.run(name)


def _lines(view: RunView) -> list[str]:
    at_work = "1 device" if view.leases == 1 else f"{view.leases} devices"
    lines: list[tuple[str, Any]] = [
        ("run", view.run),
        ("state", view.state + (f": {view.end_reason}" if view.end_reason else "")),
        ("task", f"{view.task.name} {view.task.version}, {view.num_parameters:,} parameters"),
        ("begins", view.start),
        ("progress", _progress(view)),
        (
            "updates",
            f"{view.accepted} accepted, {view.rejected} rejected, {at_work} at work, {view.late} late",
        ),
    ]
    accuracy = _accuracy(view)
    if accuracy is not None:
        lines.append((view.settings.target_metric, f"{accuracy:.1%}"))
    if view.best_version is not None:
        lines.append(("best", f"version {view.best_version}"))
    if view.moved:
        sent = sum(up for up, _ in view.moved.values())
        received = sum(down for _, down in view.moved.values())
        lines.append(("on the wire", _moved((sent, received)).removeprefix(", ")))
    if view.waiting:
        lines.append(("waits for", view.waiting))
    return [f"{name:<11} {text}" for name, text in lines]


def _moved(moved: tuple[int, int] | None) -> str:
    from fedmq.report.sizes import bytes_text

    return "" if moved is None else f", {bytes_text(moved[0])} up, {bytes_text(moved[1])} down"


def _progress(view: RunView) -> str:
    word = "round" if view.settings.mode == "sync" else "version"
    return f"{word} {view.round} of {view.settings.rounds}"


def _accuracy(view: RunView) -> float | None:
    measured = view.evaluations or view.federated
    return measured[-1].metrics.get(view.settings.target_metric) if measured else None
