"""`fedmq simulate fleet`: what a fleet of a kind would take, in virtual time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from fedmq.extras import needs
from fedmq.tables import parse_sets, read
from fedmq_protocol.errors import UsageError

if TYPE_CHECKING:
    from fedmq.simulation.fleet.figures import FleetFigures
    from fedmq.simulation.fleet.plan import Plan
    from fedmq_protocol.messages import Mode

_MODES: Final = ("sync", "fedbuff", "fedasync")
_TASKS: Final = ("none", "digits", "iris", "breast_cancer")
_OPTIONS: Final = {"mode": "--mode", "rounds": "--versions", "target": "--target", "seed": "--seed"}
"""Settings of a run that have an option of their own here."""


@click.command()
@click.option(
    "--devices", type=click.IntRange(1, 1_000_000), default=1_000, show_default=True, help="How many."
)
@click.option(
    "--mode",
    "modes",
    default="fedbuff",
    show_default=True,
    help="sync, fedbuff, fedasync; several with commas between, side by side.",
)
@click.option(
    "--versions", "--rounds", type=click.IntRange(1), default=100, show_default=True, help="To publish."
)
@click.option(
    "--compute",
    default="lognormal(30, 0.5)",
    show_default=True,
    help="Seconds that a training takes, drawn once for each device: constant(v), uniform(low, high), "
    "exponential(mean), lognormal(median, sigma), gamma(mean, shape), 0.9*... + 0.1*...",
)
@click.option(
    "--jitter",
    default="lognormal(1, 0.1)",
    show_default=True,
    help="What each single training's time is multiplied with.",
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    default=("wifi",),
    show_default=True,
    help="ethernet, wifi, lte, ltem, nbiot, or 'up=1Mbit down=5Mbit latency=lognormal(50ms,0.3) loss=0.01'; again "
    "for a mixture, as in --network 0.8*wifi --network 0.2*nbiot.",
)
@click.option(
    "--dropout",
    default="none",
    show_default=True,
    help="'up=2h down=10min', or 'training=0.05 down=60s': the share of trainings that a power cut ends.",
)
@click.option(
    "--task",
    type=click.Choice(_TASKS),
    default="none",
    show_default=True,
    help="What is learned; none: the cost of a model of --parameters, without training.",
)
@click.option(
    "--parameters",
    type=click.IntRange(1, 50_000_000),
    default=100_000,
    show_default=True,
    help="With --task none.",
)
@click.option(
    "--hidden",
    type=click.IntRange(0, 4_096),
    default=0,
    show_default=True,
    help="Units; 0: softmax regression.",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="A device has, drawn with replacement.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(min=0, min_open=True),
    help="Classes of a device by Dirichlet(alpha): the smaller, the more uneven. Default: as in the data.",
)
@click.option("--target", type=click.FloatRange(0, 1), help="End at this accuracy.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything.")
@click.option(
    "--set",
    "sets",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any other setting of the run, as in selection.fraction_train=0.1, strategy.buffer_size=100.",
)
@click.option(
    "--most",
    "most_days",
    type=click.FloatRange(0, 36_500, min_open=True),
    default=30,
    show_default=True,
    help="Virtual days after which it ends anyway.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write fleet.html and fleet.json there."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def fleet(
    modes: str,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - click's signature
    **options: Any,  # noqa: ANN401 - as declared above
) -> None:
    """What a fleet would take: time, bytes, staleness; with a task, also accuracy.

    Coordinator and devices are the real ones, under a virtual clock; the network, the devices' speed and their dropping
    out are drawn from what you say.
    """
    with needs("demo"):
        from fedmq.simulation.fleet import page
        from fedmq.simulation.fleet.run import simulate
    plan = _plan(options)
    if out is not None:
        page.make_folder(out)  # rather now than after an hour
    figures = []
    for mode in _modes(modes):
        show = _Progress(mode, plan.settings.rounds)
        figures.append(simulate(plan, mode, progress=show))
        show.end()
    if out is not None:
        path = page.write(plan, figures, out)
        click.echo(f"wrote {path}", err=True)
    click.echo(json.dumps(page.plain(plan, figures)) if as_json else page.text(figures))


def _modes(text: str) -> list[Mode]:
    named = [name.strip() for name in text.split(",")]
    if not named or not set(named) <= set(_MODES) or len(set(named)) < len(named):
        raise UsageError(f"--mode {text}: name one or more of {', '.join(_MODES)}, each once")
    return cast("list[Mode]", named)


def _plan(options: dict[str, Any]) -> Plan:
    from fedmq.simulation.fleet.distributions import parse
    from fedmq.simulation.fleet.dropout import parse_dropout
    from fedmq.simulation.fleet.links import parse_link
    from fedmq.simulation.fleet.plan import Plan
    from fedmq_coordinator.core.settings import RunSettings

    if options["task"] == "none" and options["target"] is not None:
        raise UsageError("--target needs a --task that is learned")
    if options["alpha"] is not None and not math.isfinite(options["alpha"]):
        raise UsageError("--alpha is a finite number; without it, classes are as in the data")
    sets = parse_sets(options["sets"], table="run")
    for key, option in _OPTIONS.items():
        if f"run.{key}" in sets:
            raise UsageError(f"--set {key}: give {option} instead")
    configuration = read(
        None,
        environ={},
        flags={
            "run.rounds": ("--versions", options["versions"]),
            "run.target": ("--target", options["target"]),
        },
        sets=sets,
    )
    settings = configuration.table("run", RunSettings)
    if options["devices"] < settings.selection.min_available_devices:
        raise UsageError(
            f"--devices {options['devices']}: a run waits for {settings.selection.min_available_devices} devices; "
            f"more of them, or --set selection.min_available_devices={options['devices']}"
        )
    return Plan(
        devices=options["devices"],
        settings=settings,
        compute=parse(options["compute"]),
        jitter=parse(options["jitter"]),
        network=tuple(map(parse_link, options["networks"])),
        dropout=parse_dropout(options["dropout"]),
        task=options["task"],
        parameters=options["parameters"],
        examples=options["examples"],
        alpha=options["alpha"],
        hidden=options["hidden"],
        seed=options["seed"],
        most_s=86_400.0 * options["most_days"],
    )


class _Progress:
    """A line on a terminal; elsewhere nothing."""

    def __init__(self, mode: str, versions: int) -> None:
        self._mode, self._versions, self._there = mode, versions, sys.stderr.isatty()

    def __call__(self, figures: FleetFigures) -> None:
        if self._there:
            newest = figures.versions[-1]
            text = f"\r{self._mode}: version {newest.version} of {self._versions}, {newest.at_s:,.0f} virtual seconds "
            click.echo(text, err=True, nl=False)

    def end(self) -> None:
        if self._there:
            click.echo(err=True)
