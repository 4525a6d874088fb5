"""`fleet.html` and `fleet.json`, and the same table for a terminal."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from fedmq.report.sizes import bytes_text
from fedmq.simulation.fleet.figures import FleetFigures
from fedmq.simulation.fleet.pictures import all_pictures
from fedmq.simulation.fleet.plan import NO_TASK, Plan
from fedmq_protocol.errors import UsageError

Rows = list[tuple[str, list[str]]]


def rows(modes: Sequence[FleetFigures]) -> Rows:
    """The table: a line for each figure, a column for each mode."""
    measured = any(mode.versions and mode.versions[-1].accuracy is not None for mode in modes)
    table: Rows = [
        ("virtual time", [span(mode.virtual_s) for mode in modes]),
        ("versions", [str(max(0, len(mode.versions) - 1)) for mode in modes]),
        ("updates that counted", [f"{mode.counted:,}" for mode in modes]),
        ("late among them", [f"{mode.late:,}" for mode in modes]),
        ("refused", [_counts(mode.refused) for mode in modes]),
        ("trainings cut short", [f"{mode.cut_short:,}" for mode in modes]),
        ("under way at the end", [f"{mode.in_flight:,}" for mode in modes]),
        ("leases given back", [_counts(mode.returned) for mode in modes]),
        ("mean staleness", [f"{mode.mean_staleness:.2f}" for mode in modes]),
        ("time spent training", [f"{mode.utilisation:.0%}" for mode in modes]),
        ("bytes up", [bytes_text(mode.up_bytes) for mode in modes]),
        ("bytes down", [bytes_text(mode.down_bytes) for mode in modes]),
        ("a device's up, median (most)", [_two(mode.up_by_device) for mode in modes]),
        ("a device's down, median (most)", [_two(mode.down_by_device) for mode in modes]),
    ]
    if measured:
        table.append(("accuracy at the end", [_accuracy(mode) for mode in modes]))
    if any(mode.target is not None for mode in modes):
        table.append((f"to {modes[0].target:.0%}", [_to_target(mode) for mode in modes]))
    table.append(("simulated in", [f"{mode.wall_s:.1f} s" for mode in modes]))
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items())) or "0"


def _two(quantiles: list[float]) -> str:
    return f"{bytes_text(int(quantiles[2]))} ({bytes_text(int(quantiles[-1]))})" if quantiles else "0"


def _accuracy(mode: FleetFigures) -> str:
    measured = [version.accuracy for version in mode.versions if version.accuracy is not None]
    return f"{measured[-1]:.1%}" if measured else "–"


def _to_target(mode: FleetFigures) -> str:
    if mode.target_s is None or mode.target_bytes is None:
        return "not reached"
    return f"{span(mode.target_s)}, {bytes_text(mode.target_bytes)}"


def span(seconds: float) -> str:
    """42 s, 12.5 min, 3.1 h, 2.4 days."""
    for unit, name in ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def unfinished(modes: Sequence[FleetFigures]) -> list[str]:
    """A line for each mode whose run did not come to its end."""
    return [f"{mode.mode} is {mode.state}: {mode.reason}" for mode in modes if mode.state != "finished"]


def text(modes: Sequence[FleetFigures]) -> str:
    """For a terminal."""
    table = [("", [mode.mode for mode in modes]), *rows(modes)]
    first = max(len(name) for name, _ in table)
    widths = [max(len(values[place]) for _, values in table) for place in range(len(modes))]
    lines = [
        f"{name:<{first}}"
        + "".join(f"  {value:>{width}}" for value, width in zip(values, widths, strict=True))
        for name, values in table
    ]
    return "\n".join([*lines, *unfinished(modes)])


def plain(plan: Plan, modes: Sequence[FleetFigures]) -> dict[str, object]:
    """For programs."""
    asked = {
        "devices": plan.devices,
        "task": plan.task,
        "parameters": plan.parameters if plan.task == NO_TASK else None,
        "compute": plan.compute.text,
        "jitter": plan.jitter.text,
        "network": [kind.text for kind in plan.network],
        "dropout": plan.dropout.text,
        "seed": plan.seed,
        "settings": plan.settings.model_dump(mode="json", exclude={"mode"}),
    }
    return {"plan": asked, "modes": [mode.plain() for mode in modes]}


def make_folder(folder: Path) -> None:
    """See that a folder is there, and takes files.

    Raises:
        UsageError: it cannot be made, or not be written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}") from error


def write(plan: Plan, modes: Sequence[FleetFigures], folder: Path) -> Path:
    """Write `fleet.html` and `fleet.json` into a folder; return the page's path."""
    make_folder(folder)
    figures = json.dumps(plain(plan, modes), indent=1) + "\n"
    (folder / "fleet.json").write_text(figures, encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("fedmq.simulation.fleet"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    task = f"no task: the cost of {plan.parameters:,} parameters" if plan.task == NO_TASK else plan.task
    page = folder / "fleet.html"
    page.write_text(
        environment.get_template("fleet.html.j2").render(
            devices=plan.devices,
            task=task,
            compute=plan.compute.text,
            jitter=plan.jitter.text,
            network=", ".join(kind.text for kind in plan.network),
            dropout=plan.dropout.text,
            seed=plan.seed,
            modes=modes,
            rows=rows(modes),
            unfinished=unfinished(modes),
            pictures=all_pictures(modes),
            settings=json.dumps(
                plan.settings.model_dump(mode="json", exclude={"mode"}), indent=2, sort_keys=True
            ),
        ),
        encoding="utf-8",
    )
    return page
