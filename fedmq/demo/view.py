"""What a demo shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedmq.report.sizes import bytes_text

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH: Final = 40
_TABLE_UP_TO: Final = 12
_STATE_STYLES: Final = {
    "training": "green",
    "idle": "cyan",
    "offline": "red",
    "unable": "red",
    "paused": "yellow",
    "killed": "bold red",
    "starting": "dim",
}


@dataclass(frozen=True)
class DeviceLine:
    """One device as the view shows it."""

    id: str
    state: str
    updates: int = 0
    num_examples: int | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    task_time_s: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Scene:
    """Everything that the view shows at one moment."""

    elapsed_s: float
    broker: str = ""
    doing: str = "starting"
    """What goes on before and after the run."""
    waiting: str = ""
    """For what the run waits, while it runs."""
    round: int = 0
    rounds: int = 0
    accuracies: Sequence[float] = ()
    losses: Sequence[float] = ()
    devices: Sequence[DeviceLine] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_float32: int = 0
    late: int = 0
    rejected: int = 0
    news: Sequence[str] = ()
    """What has happened, in the order in which it did."""


@dataclass(frozen=True)
class Heading:
    """What does not change."""

    task: str
    num_devices: int
    mode: str
    word: str = "round"


class View(Protocol):
    """Shows scenes until it is left."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...
    def show(self, scene: Scene) -> None:
        """Show what holds now."""


class LiveView:
    """Redraws a table in place."""

    def __init__(self, console: Console, heading: Heading) -> None:
        self._heading = heading
        self._live = Live(console=console, refresh_per_second=8, transient=False, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, scene: Scene) -> None:
        self._live.update(picture(self._heading, scene), refresh=True)


class PlainView:
    """Prints a line a round, and one for each thing that happens."""

    def __init__(self, console: Console, heading: Heading) -> None:
        self._console = console
        self._heading = heading
        self._rounds = 0
        self._doing = ""
        self._news = 0
        self._last_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def show(self, scene: Scene) -> None:
        for line in scene.news[self._news :]:
            self._print(line)
        self._news = len(scene.news)
        for done in range(self._rounds, len(scene.accuracies)):
            parts = [f"{self._heading.word} {done + 1:>3}", f"accuracy {scene.accuracies[done]:6.1%}"]
            if done < len(scene.losses):
                parts.append(f"loss {scene.losses[done]:.4f}")
            parts += [
                f"up {bytes_text(scene.bytes_up)}, down {bytes_text(scene.bytes_down)} so far",
                f"{scene.elapsed_s:.1f} s",
            ]
            self._print("  ".join(parts))
        self._rounds = max(self._rounds, len(scene.accuracies))
        if scene.doing and scene.doing != self._doing:
            self._doing = scene.doing
            self._print(scene.doing)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def picture(heading: Heading, scene: Scene) -> RenderableType:
    """One frame of the live view."""
    parts: list[RenderableType] = [_title(heading, scene), Text(), _facts(heading, scene)]
    if scene.devices:
        parts += [Text(), _devices(scene)]
    if scene.news:
        parts += [Text(), *(Text(f"  {line}", style="yellow") for line in scene.news[-4:])]
    return Padding(Group(*parts), (1, 1))


def sparkline(values: Sequence[float], *, width: int = _SPARK_WIDTH) -> str:
    """The last `width` values as a row of blocks, the lowest as the smallest."""
    shown = list(values[-width:])
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if math.isclose(low, high):
        return _BLOCKS[len(_BLOCKS) // 2] * len(shown)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / (high - low) * top)] for value in shown)


def _title(heading: Heading, scene: Scene) -> Text:
    line = Text("fedmq", style="bold")
    line.append(
        f"  {heading.task} on {heading.num_devices} devices, {heading.mode}", style="default not bold"
    )
    if scene.broker:
        line.append(f"  ·  {scene.broker}", style="dim not bold")
    return line


def _facts(heading: Heading, scene: Scene) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    progress = Table.grid(padding=(0, 1))
    progress.add_row(
        ProgressBar(total=max(1, scene.rounds), completed=scene.round, width=_SPARK_WIDTH),
        Text(f"{scene.round} of {scene.rounds}   {scene.elapsed_s:.1f} s"),
    )
    facts.add_row(heading.word, progress)
    if scene.accuracies:
        accuracy = Text(sparkline(scene.accuracies), style="cyan")
        accuracy.append(f"  {scene.accuracies[-1]:.1%}", style="bold default")
        accuracy.append(f"  best {max(scene.accuracies):.1%}", style="dim default not bold")
        facts.add_row("accuracy", accuracy)
    if scene.bytes_up or scene.bytes_down:
        traffic = Text(f"{bytes_text(scene.bytes_up)} up, {bytes_text(scene.bytes_down)} down")
        if scene.bytes_float32:
            ratio = scene.bytes_float32 / (scene.bytes_up + scene.bytes_down)
            traffic.append(f"   1/{ratio:.0f} of float32", style="dim")
        facts.add_row("on the wire", traffic)
    if scene.devices:
        facts.add_row("devices", _counts(scene))
    word, text = ("now", scene.doing) if scene.doing else ("waits for", scene.waiting)
    facts.add_row(word, Text(text, overflow="ellipsis", no_wrap=True))
    return facts


def _counts(scene: Scene) -> Text:
    line = Text()
    for state, count in sorted(Counter(device.state for device in scene.devices).items()):
        line.append(f"{count} {state}  ", style=_STATE_STYLES.get(state, ""))
    for count, word in ((scene.late, "late"), (scene.rejected, "rejected")):
        if count:
            line.append(f"{count} {word}  ", style="yellow")
    return line


def _devices(scene: Scene) -> RenderableType:
    if len(scene.devices) > _TABLE_UP_TO:
        return Text()
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("device")
    table.add_column("state", width=9)
    for name in ("updates", "examples", "up", "down", "a task"):
        table.add_column(name, justify="right")
    table.add_column("")
    for device in scene.devices:
        table.add_row(
            device.id,
            Text(device.state, style=_STATE_STYLES.get(device.state, "")),
            str(device.updates),
            "-" if device.num_examples is None else str(device.num_examples),
            bytes_text(device.bytes_up),
            bytes_text(device.bytes_down),
            "-" if device.task_time_s is None else f"{device.task_time_s:.2f} s",
            Text(device.remark, style="dim"),
        )
    return table
