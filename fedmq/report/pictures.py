"""Four pictures of a run as SVG text, made to stand in a page that knows light and dark.

Matplotlib knows no CSS variables, so it draws in marker colours that nobody else uses and the text is replaced after.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from fedmq.report.figures import Report
from fedmq.report.sizes import bytes_text

INK, MUTED, GRID, CARD = "#010203", "#010204", "#010205", "#01020a"
UP, DOWN, REFERENCE, LATE = "#010206", "#010207", "#010208", "#010209"

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    CARD: "--card",
    UP: "--blue",
    DOWN: "--teal",
    REFERENCE: "--grey",
    LATE: "--orange",
}
_FONT = "DejaVu Sans"  # matplotlib ships it; its widths are a fair guess for the reader's own font
_RC = {
    "svg.fonttype": "none",
    "font.family": _FONT,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 2.0,
    "lines.markersize": 3.5,
}
_WIDTH = 8.4  # inches; the page scales
_MAX_ROWS = 60
_FEW_ROUNDS = 40


@dataclass(frozen=True)
class Picture:
    """A picture with its caption; `label` is what a screen reader says."""

    name: str
    title: str
    caption: str
    label: str
    svg: str


def all_pictures(report: Report) -> list[Picture]:
    """Every picture that the report has data for."""
    pictures = [learning(report), traffic(report)]
    if report.updates:
        pictures += [staleness(report), timeline(report)]
    return pictures


def learning(report: Report) -> Picture:
    """Accuracy and loss, a value a round."""
    evaluated = [figures for figures in report.rounds if figures.accuracy is not None]
    xs = [figures.round for figures in evaluated]
    accuracies = [figures.accuracy or 0.0 for figures in evaluated]
    losses = [(figures.round, figures.loss) for figures in report.rounds if figures.loss is not None]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        left.plot(xs, accuracies, color=UP, marker="o" if len(xs) <= _FEW_ROUNDS else None, label="this run")
        if report.accuracy_centralised is not None:
            _level(left, report.accuracy_centralised, f"centralised {report.accuracy_centralised:.1%}")
        if report.target is not None:
            _level(left, report.target, f"target {report.target:.0%}", dotted=True)
        left.set_title("Accuracy")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        left.legend(loc="lower right")
        right.plot([x for x, _ in losses], [y for _, y in losses], color=LATE)
        right.set_title("Loss")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            _rounds_axis(axes, report)

    best = f"{report.accuracy_best:.1%}" if report.accuracy_best is not None else "not measured"
    return Picture(
        "learning",
        "Learning",
        "Accuracy and loss of each round's model, on data that no device trains on. "
        "Centralised: the same model trained on all data in one place, for as many epochs.",
        f"Accuracy over {len(xs)} rounds, at best {best}, and the loss.",
        svg("learning", draw, height=2.9),
    )


def traffic(report: Report) -> Picture:
    """Bytes a round, up and down, on a logarithmic scale."""
    xs = [figures.round for figures in report.rounds]
    up = [max(1, figures.bytes_up) for figures in report.rounds]
    down = [max(1, figures.bytes_down) for figures in report.rounds]
    each_way = report.num_parameters * 4

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        plain = [max(1, each_way * figures.participants) for figures in report.rounds]
        axes.plot(xs, plain, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.5, label="float32, each way")
        marker = "o" if len(xs) <= _FEW_ROUNDS else None
        axes.plot(xs, down, color=DOWN, marker=marker, label="down, to the devices")
        axes.plot(xs, up, color=UP, marker=marker, label="up, from the devices")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
        axes.yaxis.minorticks_off()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncols=3)
        _rounds_axis(axes, report)

    word = "round" if report.mode == "sync" else "version"
    ratio = f"{report.compression_ratio:.0f}" if report.compression_ratio else "unknown"
    return Picture(
        "traffic",
        f"Bytes a {word}",
        "Everything on the devices' MQTT sockets, all devices together, on a logarithmic scale. "
        f"The first {word} holds the first download of the whole model.",
        f"Bytes a {word} up and down; float32 would take {ratio} times as much over the run.",
        svg("traffic", draw, height=3.0),
    )


def staleness(report: Report) -> Picture:
    """How old the versions were that updates trained on."""
    counts = {int(age): count for age, count in report.staleness.items()}
    ages = range(max(counts, default=0) + 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        heights = [counts.get(age, 0) for age in ages]
        bars = axes.bar(list(ages), heights, width=0.7, color=[UP if age == 0 else LATE for age in ages])
        axes.bar_label(bars, [str(height) if height else "" for height in heights], padding=2, color=INK)
        axes.set_xlabel("staleness, in published versions")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.grid(visible=False, axis="x")
        axes.set_xlim(-0.75, max(ages[-1], 3) + 0.75)
        axes.margins(y=0.15)

    late = sum(count for age, count in counts.items() if age)
    return Picture(
        "staleness",
        "Staleness",
        "How many versions had been published since the one that an update trained on. "
        "Late updates count, with less weight.",
        f"{counts.get(0, 0)} fresh updates and {late} late ones.",
        svg("staleness", draw, height=2.5),
    )


def timeline(report: Report) -> Picture:
    """Who trained when: a row a device, a bar from lease to receipt."""
    busiest = Counter(update.device for update in report.updates)
    rows = sorted({device.id for device in report.devices} | set(busiest), key=_natural)
    hidden = max(0, len(rows) - _MAX_ROWS)
    rows = rows[:_MAX_ROWS]
    place = {device: index for index, device in enumerate(rows)}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for colour, late in ((UP, False), (LATE, True)):
            for row, name in enumerate(rows):
                spans = [
                    (update.start_s, max(update.end_s - update.start_s, 0.001))
                    for update in report.updates
                    if update.device == name and (update.staleness > 0) == late
                ]
                if spans:
                    axes.broken_barh(
                        spans, (row - 0.34, 0.68), facecolor=colour, edgecolor=CARD, linewidth=0.6
                    )
        if len(report.rounds) <= _FEW_ROUNDS:
            for figures in report.rounds:
                axes.axvline(figures.end_s, color=GRID, linewidth=0.7, zorder=0)
        for device in report.devices:
            if device.killed_s is not None and device.id in place:
                axes.plot(device.killed_s, place[device.id], marker="x", markersize=8, mew=2, color=INK)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds")
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)

    orange = "it came late and counted by its staleness"
    if report.mode != "sync":
        orange = "other versions were published while it trained"
    more = f" {hidden} more devices are not shown." if hidden else ""
    killed = any(device.killed_s is not None for device in report.devices)
    return Picture(
        "timeline",
        "Who trained when",
        f"From the lease to the accepted update; orange: {orange}."
        + (" A cross: the device was killed." if killed else "")
        + more,
        f"A timeline of {len(rows)} devices.",
        svg("timeline", draw, height=0.9 + 0.24 * len(rows)),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _level(axes: Axes, value: float, text: str, *, dotted: bool = False) -> None:
    style = (0, (1, 2)) if dotted else (0, (4, 3))
    axes.axhline(value, color=REFERENCE, linestyle=style, linewidth=1.5, label=text)


def _rounds_axis(axes: Axes, report: Report) -> None:
    axes.set_xlabel("round" if report.mode == "sync" else "published version")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False, axis="x")
    axes.set_xlim(0.5, max(2, len(report.rounds)) + 0.5)


@contextmanager
def _style(name: str) -> Iterator[None]:
    settings: dict[str, Any] = {**_RC, "svg.hashsalt": f"fedmq-{name}"}
    with mpl.rc_context(settings):  # type: ignore[arg-type] # its stub lists every key as a literal
        yield


def svg(name: str, draw: Callable[[Figure], None], *, height: float) -> str:
    """Draw, and make the SVG fit to stand in a page beside others: own ids, own colours, no fixed size."""
    with _style(name):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', svg)
    svg = svg.replace(f"'{_FONT}'", "inherit")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
