"""`fedmq demo`: a whole federation on this machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmq.demo.options import COMPRESSIONS, MODES, PARTITIONS, DemoOptions
from fedmq.extras import needs
from fedmq.tables import parse_sets
from fedmq.tasks import BUILT_IN

if TYPE_CHECKING:
    from fedmq.demo.view import View


@click.command()
@click.option(
    "--devices", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many devices."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="Rounds, or published versions in async modes; default: some 20 updates of each device.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="sync",
    show_default=True,
    help="How updates combine.",
)
@click.option(
    "--partition",
    type=click.Choice(PARTITIONS),
    default="iid",
    show_default=True,
    help="How the data are cut.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(min=0, min_open=True),
    default=0.3,
    show_default=True,
    help="Of the dirichlet partition: the smaller, the more uneven.",
)
@click.option(
    "--task", type=click.Choice(list(BUILT_IN)), default="digits", show_default=True, help="What is learned."
)
@click.option(
    "--density", type=click.FloatRange(0, 1, min_open=True), help="Share of the parameters in an update."
)
@click.option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    default="default",
    show_default=True,
    help="none: float32 both ways, for comparison.",
)
@click.option(
    "--stragglers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How many are slow.",
)
@click.option(
    "--straggler-delay",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="How much slower they are at each task, in seconds.",
)
@click.option(
    "--dropouts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How many vanish in mid-round, killed.",
)
@click.option(
    "--broker",
    metavar="URL",
    help="A broker of yours, mqtt://host:1883; or which one to start: mosquitto or embedded.",
)
@click.option(
    "--target", type=float, help="End when the accuracy reaches this; without it, 0.95 is only reported."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**53 - 1), default=0, show_default=True, help="Of all that is drawn."
)
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of a run: --set train.lr=0.1",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("fedmq-demo"),
    show_default=True,
    help="The folder for the model and the report.",
)
@click.option(
    "--keep", is_flag=True, help="Keep the folder with the journal, the logs and the devices' state."
)
@click.option("--json", "as_json", is_flag=True, help="Print report.json on stdout, and nothing else there.")
@click.pass_context
def demo(  # what is not named here goes into `DemoOptions` under its own name
    context: click.Context,
    /,
    as_json: bool,  # noqa: FBT001 - click's signature
    pairs: tuple[str, ...],
    straggler_delay: float,
    **rest: Any,  # noqa: ANN401 - each of its own type
) -> None:
    """Train on ten devices over a real broker, on this machine, and watch.

    A broker, a coordinator and the devices each run in processes of their own. At the end there are the model and a
    report in a folder. Ctrl-C ends everything, at any moment.
    """
    started_at = _process_began_at()
    options = DemoOptions(straggler_delay_s=straggler_delay, sets=parse_sets(pairs, table="run"), **rest)
    with needs("demo"):
        from fedmq.demo.play import InterruptedBySignal, play

    try:
        report = play(options, started_at=started_at, make_view=lambda: _view(options, as_json=as_json))
    except InterruptedBySignal as interrupt:
        click.echo("fedmq: interrupted; everything has been ended", err=True)
        context.exit(128 + interrupt.number)
    if as_json:
        from fedmq.report.page import to_json

        click.echo(to_json(report), nl=False)
        return
    from fedmq.demo.summary import summary

    click.echo()
    for name, text in summary(report, options.out):
        click.echo(f"  {name:<14} {text}")


def _view(options: DemoOptions, *, as_json: bool) -> View:
    with needs("demo"):
        from rich.console import Console

        from fedmq.demo.view import Heading, LiveView, PlainView
    console = Console(file=sys.stderr if as_json else sys.stdout)
    word = "round" if options.mode == "sync" else "version"
    heading = Heading(options.task, options.devices, options.mode, word)
    return LiveView(console, heading) if console.is_terminal else PlainView(console, heading)


def _process_began_at() -> float:
    """When this process was started, in seconds since the epoch: Python's own start counts too."""
    try:
        import psutil
    except ModuleNotFoundError:
        return time.time()
    return psutil.Process().create_time()
