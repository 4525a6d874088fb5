"""`fedmq simulate`: the real cores under virtual time, faster than real time."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmq.commands.fleet import fleet
from fedmq.extras import needs

if TYPE_CHECKING:
    from fedmq.simulation.faults.runner import Failure, Tally


@click.group()
def simulate() -> None:
    """The coordinator and the devices as they are, in virtual time and in memory."""


simulate.add_command(fleet)


@simulate.command()
@click.option("--histories", type=click.IntRange(1), default=200, show_default=True, help="How many.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first; each has the next."
)
@click.option("--jobs", type=click.IntRange(1), help="Processes; default: as many as there are cores.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Go on where an interrupted run ended; written as it goes.",
)
@click.option("--replay", type=click.IntRange(0), help="One history by its seed, told if it breaks.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON on stdout.")
@click.pass_context
def faults(
    context: click.Context,
    histories: int,
    seed: int,
    jobs: int | None,
    resume: Path | None,
    replay: int | None,
    as_json: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Try every bad moment: histories with faults, each named by a seed.

    In each, messages are lost, doubled and late, connections end, and coordinator, broker and devices are killed, in
    the middle of a write, too. After every step it is checked that no update is lost or counted twice, that all models
    are the same to the bit, and more. Exits 1 at the first that breaks, with the seed that replays it and its story.
    """
    with needs("demo"):
        from fedmq.simulation.faults import runner
    if replay is not None:
        outcome, story = runner.replay(replay)
        click.echo(story)
        context.exit(0 if outcome.broken is None else 1)
    began = time.perf_counter()
    jobs = jobs or os.cpu_count() or 1
    show = _Progress(histories, began)
    tally, failure = runner.run_histories(histories, seed=seed, jobs=jobs, resume=resume, progress=show)
    show.end()
    took_s = time.perf_counter() - began
    if as_json:
        click.echo(
            json.dumps(
                tally.plain() | {"seed": seed, "took_s": took_s, "broken": failure and asdict(failure)}
            )
        )
    else:
        _summary(tally, failure, show.rate(tally, took_s))
    context.exit(0 if failure is None else 1)


@simulate.command()
@click.option(
    "--histories", type=click.IntRange(1), default=300, show_default=True, help="To look for each in."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@click.pass_context
def mutants(
    context: click.Context,
    histories: int,
    seed: int,
    as_json: bool,  # noqa: FBT001 - click's signature
) -> None:
    """Plant bugs in the cores, one after the other, and see which invariant finds each.

    Exits 1 if one is not found.
    """
    with needs("demo"):
        from fedmq.simulation.faults.mutants import MUTANTS, hunt
    found = []
    for mutant in MUTANTS:
        each = hunt(mutant, histories=histories, seed=seed)
        found.append(each)
        if not as_json:
            what = (
                f"{each.invariant:<14} {each.histories:>4}"
                if each.invariant
                else f"{'NOT FOUND':<14} {'':>4}"
            )
            click.echo(f"{mutant.name:<32} {what}  {each.text}")
    if as_json:
        told = [
            {
                "mutant": each.mutant.name,
                "does": each.mutant.text,
                "invariant": each.invariant,
                "histories": each.histories,
                "seed": each.seed,
                "text": each.text,
            }
            for each in found
        ]
        click.echo(json.dumps(told))
    context.exit(0 if all(each.invariant for each in found) else 1)


class _Progress:
    """A line on a terminal; elsewhere nothing."""

    def __init__(self, histories: int, began: float) -> None:
        self._histories, self._began, self._there = histories, began, sys.stderr.isatty()
        self._before: int | None = None

    def __call__(self, tally: Tally) -> None:
        if self._before is None:
            self._before = tally.histories  # of the run that this one resumes
        if not self._there:
            return
        took_s = time.perf_counter() - self._began
        rate = self.rate(tally, took_s)
        left_s = (self._histories - tally.histories) / rate if rate else 0.0
        share = tally.histories / self._histories
        bar = ("#" * int(30 * share)).ljust(30, ".")
        text = f"\r[{bar}] {tally.histories} of {self._histories}, {rate:.0f} a second, {left_s:.0f} s left "
        click.echo(text, err=True, nl=False)

    def rate(self, tally: Tally, took_s: float) -> float:
        """Histories a second, without those of the run that this one resumes."""
        return (tally.histories - (self._before or 0)) / max(took_s, 1e-9)

    def end(self) -> None:
        if self._there:
            click.echo(err=True)


def _summary(tally: Tally, failure: Failure | None, rate: float) -> None:
    if failure is not None:
        click.echo(failure.story)
        click.echo(f"\nreplay it: fedmq simulate faults --replay {failure.seed}\n")
    events = tally.events / max(1, tally.histories)
    click.echo(
        f"{tally.histories} histories{'' if failure else ', nothing broke'}: {rate:.1f} a second, "
        f"{events:.0f} events each, {tally.fewest_events} at least, {tally.fewest_faults} faults at least"
    )
    for title, counts in (("took effect", tally.struck), ("happened", tally.facts)):
        click.echo(f"\n  {title}:")
        for name, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
            click.echo(f"  {count:>9}  {name}")
