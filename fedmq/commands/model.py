"""`fedmq model`: the versions of runs' models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from fedmq.commands.options import config_option, state_dir_option
from fedmq.commands.run import client_of
from fedmq_protocol.errors import UsageError


@click.group()
def model() -> None:
    """List and export model versions."""


@model.command()
@click.argument("name", metavar="[RUN]", required=False)
@config_option
@state_dir_option
def ls(name: str | None, config_path: Path | None, state_dir: Path | None) -> None:
    """List the versions that were evaluated; without RUN, the newest and the best of each run."""
    with client_of(config_path, state_dir) as client:
        if name is None:
            for view in client.runs():
                best = "-" if view.best_version is None else str(view.best_version)
                click.echo(
                    f"{view.run:<24} newest {view.version:>5}  best {best:>5}  {view.task.name} {view.task.version}"
                )
            return
        view = client.run(name)
        for version in view.evaluations or view.federated:
            metrics = "  ".join(f"{metric} {value:.4f}" for metric, value in version.metrics.items())
            mark = "  best" if version.version == view.best_version else ""
            click.echo(f"version {version.version:>5}  loss {version.loss:.4f}  {metrics}{mark}")


@model.command()
@click.argument("name", metavar="RUN")
@config_option
@state_dir_option
@click.option("--version", "wanted", default="best", show_default=True, help="A number, `best` or `latest`.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to write.",
)
def export(name: str, config_path: Path | None, state_dir: Path | None, wanted: str, out: Path) -> None:
    """Write a version as a safetensors file, with the names, shapes and types of the task's state_dict."""
    version: int | Literal["latest", "best"]
    if wanted in {"best", "latest"}:
        version = cast("Literal['latest', 'best']", wanted)
    elif wanted.isdecimal():
        version = int(wanted)
    else:
        raise UsageError(f"--version {wanted!r} is neither a number nor best nor latest")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {str(out.parent)!r} to write to")
    with client_of(config_path, state_dir) as client:
        client.download_model(name, out, version=version)
    click.echo(str(out))
