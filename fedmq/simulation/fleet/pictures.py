"""Pictures of a fleet's modes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from fedmq.report.pictures import DOWN, LATE, MUTED, UP, Picture, svg
from fedmq.report.sizes import bytes_text
from fedmq.simulation.fleet.figures import FleetFigures

_COLOURS = (UP, LATE, DOWN, MUTED)
_BINS = 40


def all_pictures(modes: Sequence[FleetFigures]) -> list[Picture]:
    """Every picture that there are figures for."""
    measured = any(version.accuracy is not None for mode in modes for version in mode.versions)
    return [*([learning(modes)] if measured else []), progress(modes), staleness(modes)]


def _time_axis(axes: Axes, modes: Sequence[FleetFigures]) -> None:
    longest = max(mode.virtual_s for mode in modes)
    unit, name = next(
        (unit, name)
        for unit, name in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
        if longest > 2 * unit or unit == 1.0
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds / unit:g}"))
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=6, steps=[1, 2, 3, 5, 6, 10]) if unit == 1.0 else _Times(unit)
    )
    axes.set_xlabel(f"virtual {name}")
    axes.set_xlim(left=0)


class _Times(MaxNLocator):
    """Ticks at round numbers of a unit of time."""

    def __init__(self, unit: float) -> None:
        super().__init__(nbins=6)
        self._unit = unit

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Where the ticks stand, in seconds."""
        return [tick * self._unit for tick in super().tick_values(vmin / self._unit, vmax / self._unit)]


def learning(modes: Sequence[FleetFigures]) -> Picture:
    """Accuracy against virtual time, and against bytes."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for mode, colour in zip(modes, cycle(_COLOURS), strict=False):
            seen = [version for version in mode.versions if version.accuracy is not None]
            accuracy = [version.accuracy or 0.0 for version in seen]
            left.plot([version.at_s for version in seen], accuracy, color=colour, label=mode.mode)
            right.plot([v.up_bytes + v.down_bytes for v in seen], accuracy, color=colour)
        left.set_title("Accuracy against time")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        left.legend(loc="lower right")
        _time_axis(left, modes)
        right.set_title("Accuracy against bytes, both ways")
        right.xaxis.set_major_formatter(FuncFormatter(lambda size, _: bytes_text(size)))
        right.xaxis.set_major_locator(MaxNLocator(nbins=4))
        right.set_xlim(left=0)

    return Picture(
        "learning",
        "Learning",
        "Accuracy of each version on data that no device trains on.",
        "Accuracy of each mode over time and over bytes.",
        svg("learning", draw, height=3.0),
    )


def progress(modes: Sequence[FleetFigures]) -> Picture:
    """Updates that counted, and bytes, against virtual time."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for mode, colour in zip(modes, cycle(_COLOURS), strict=False):
            times = [version.at_s for version in mode.versions]
            left.plot(times, [version.updates for version in mode.versions], color=colour, label=mode.mode)
            right.plot(times, [version.up_bytes for version in mode.versions], color=colour, linestyle="--")
            right.plot(times, [version.down_bytes for version in mode.versions], color=colour)
        left.set_title("Updates that counted")
        left.legend(loc="upper left")
        right.set_title("Bytes: down, and up (dashed)")
        right.yaxis.set_major_formatter(FuncFormatter(lambda size, _: bytes_text(size)))
        for axes in (left, right):
            _time_axis(axes, modes)
            axes.set_ylim(bottom=0)

    return Picture(
        "progress",
        "Progress",
        "Updates and bytes of all devices together, since the run was asked for.",
        "Updates and bytes of each mode over time.",
        svg("progress", draw, height=2.8),
    )


def staleness(modes: Sequence[FleetFigures]) -> Picture:
    """How old the versions were that updates trained on."""

    def draw(figure: Figure) -> None:
        rows = figure.subplots(1, len(modes), squeeze=False)[0]
        for axes, mode, colour in zip(rows, modes, cycle(_COLOURS), strict=False):
            oldest = max(mode.staleness, default=0)
            width = -(-(oldest + 1) // _BINS)
            ages = list(mode.staleness)
            axes.hist(
                ages,
                bins=[edge - 0.5 for edge in range(0, oldest + width + 1, width)],
                weights=[mode.staleness[age] for age in ages],
                color=colour,
            )
            axes.set_title(f"{mode.mode}: mean {mode.mean_staleness:.1f}")
            axes.set_xlabel("versions")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))

    return Picture(
        "staleness",
        "Staleness",
        "How many versions had been published since the one that an update trained on.",
        "Histograms of the staleness of each mode's updates.",
        svg("staleness", draw, height=2.4),
    )
